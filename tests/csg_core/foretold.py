"""Codecs by name for tests: as recipes name them, or predicting from deltas that are held."""

from functools import cache

import numpy as np

from csg_core.codecs import Codec, Parts, Predicted, codec_named, total

AFTER = tuple(f"{line} after {held}" for line in ("fp32", "uniform:bits=4", "ecsq")
              for held in range(3))  # fmt: skip


@cache
def codec_of(name: str, parts: Parts) -> Codec:
    """The codec of a line, or, after so many deltas, what it is of differences from predictions."""
    line, _, held = name.partition(" after ")
    rng = np.random.default_rng(7)
    deltas = tuple(rng.laplace(size=total(parts)).astype(np.float32) for _ in range(int(held or 0)))
    return Predicted(codec_named(line), deltas) if held else codec_named(line)
