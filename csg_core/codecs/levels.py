"""Levels, small signed integers, by range coding (the library constriction): one stream for all.

Levels come in classes, each with a model of three bytes: how often a level is not zero, how often
it then is beyond one, and how often it then goes on to the next. So a class costs next to nothing
to tell apart. A model's weights are made of integers only, so that every machine decodes with the
same numbers.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import CodecError

Levels = NDArray[np.int32]
MOST = 127  # largest level; the smallest is one less than -127
MODEL_BYTES = 3
_ONE = 1 << 24  # a probability of one
_queue, _categorical = constriction.stream.queue, constriction.stream.model.Categorical


def model_of(levels: Levels) -> bytes:
    """The model of a class of levels, int32 [count] from -128 to 127: ``MODEL_BYTES`` bytes.

    The square root of the share of levels that are not zero, of these the share beyond one, and of
    the steps from two on the share that goes further, in 256ths; zeros if all levels are zero.
    """
    counts = np.bincount(np.abs(levels), minlength=3).astype(np.float64)
    used, beyond = float(counts[1:].sum()), float(counts[2:].sum())
    if not used:
        return bytes(MODEL_BYTES)
    further = float(counts[2:] @ np.arange(len(counts) - 2))
    root = np.clip(round(256 * (used / levels.size) ** 0.5), 1, 255)
    parts = (beyond / used, further / (further + beyond) if beyond else 0)
    return bytes([root, *(min(255, round(256 * part)) for part in parts)])


def code(classes: Sequence[tuple[Levels, bytes]]) -> bytes:
    """The bytes of all classes of levels, int32 [count] from -128 to 127, each with its model.

    Models are not in them. Of a class whose model is zeros nothing is written.
    """
    encoder = _queue.RangeEncoder()
    for levels, model in classes:
        if model[0]:
            encoder.encode(levels + (MOST + 1), _weights(model))
    words: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return words


def decode(body: bytes | memoryview, classes: Sequence[tuple[int, bytes]]) -> list[Levels]:
    """The levels of each class, int32 [count], of which count and model are known.

    Raises:
        CodecError: if the bytes are not those of such levels.
    """
    if len(body) % 4:
        raise CodecError(f"{len(body):,} bytes cannot be levels: no multiple of four")
    decoder = _queue.RangeDecoder(np.frombuffer(body, "<u4").astype(np.uint32))
    found: list[Levels] = []
    try:
        for count, model in classes:
            used = model[0] and count
            levels = decoder.decode(_weights(model), count) if used else np.full(count, MOST + 1)
            found.append((levels - (MOST + 1)).astype(np.int32))
    except AssertionError as error:  # constriction's way of saying so
        raise CodecError(f"levels are damaged: {len(body):,} bytes do not give them") from error
    if code([(levels, model) for levels, (_, model) in zip(found, classes, strict=True)]) != body:
        raise CodecError(f"levels are damaged: {len(body):,} bytes are not theirs")  # or too long
    return found


def _weights(model: bytes) -> Any:
    """The probabilities of the levels -128 to 127."""
    root, beyond, further = model
    used = _ONE * root * root >> 16
    rest = used * beyond >> 8
    magnitudes = [used - rest]
    for _ in range(2, MOST + 2):
        magnitudes.append(rest * (256 - further) >> 8)
        rest = rest * further >> 8
    sides = [max(1, weight >> 1) for weight in magnitudes]
    weights = np.array([*chain(reversed(sides), [_ONE - used], sides[:-1])], np.float64)
    return _categorical(weights / weights.sum(), perfect=False)
