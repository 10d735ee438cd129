"""Side by side with other simulators of federated learning: the same work on the same machine.

``side_by_side`` is a part of the benchmark. ``plain`` and the ``run_*`` scripts run in the peers'
own environments and import nothing else of this repository.
"""
