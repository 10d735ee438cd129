"""What others federate in place of whole kernels, for comparison; named in model.parametrization.

Each is a function (dense network, options, seed) under the entry point ``csg_fl.parametrizations``
of pyproject.toml. One-bit, ternary, sparse and dense quantised rivals are codecs of ``csg_core``.
"""
