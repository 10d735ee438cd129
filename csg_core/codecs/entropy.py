"""Small integers to bytes by range coding (the library constriction), and back.

The model of the symbols is sent along as one byte a symbol: its probability in steps of 1/8 bit,
made of integers only, so that every machine decodes with the same numbers.
"""

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import CodecError

Symbols = NDArray[np.int32]

_STEPS = 8  # of a bit
_ABSENT = 255  # for a symbol that does not occur
# 2^(-i/8), i = 0..7, as integers of 24 bits; shifted right for whole bits
_FRACTIONS = np.array(
    [16777216, 15384775, 14107901, 12937002, 11863283, 10878679, 9975792, 9147842], np.int64
)
_queue, _models = constriction.stream.queue, constriction.stream.model


def code(symbols: Symbols, alphabet: int) -> bytes:
    """The bytes of symbols, int32 [count] from 0 to ``alphabet - 1``: the model, then words of 32
    bits; of a single symbol, however often, the model alone.
    """
    counts = np.bincount(symbols, minlength=alphabet)
    costs = _costs(counts)
    if np.count_nonzero(counts) <= 1:
        return costs.tobytes()
    return costs.tobytes() + _words(symbols, _model(costs)).astype("<u4").tobytes()


def decode(body: bytes | memoryview, count: int, alphabet: int) -> Symbols:
    """The symbols, int32 [count].

    Raises:
        CodecError: if the bytes are not those of so many symbols.
    """
    if len(body) < alphabet or (len(body) - alphabet) % 4:
        raise CodecError(f"{len(body):,} bytes cannot be {count:,} symbols of {alphabet}")
    costs = np.frombuffer(body[:alphabet], np.uint8)
    words = np.frombuffer(body[alphabet:], "<u4").astype(np.uint32)
    present = np.flatnonzero(costs != _ABSENT)
    if len(present) <= 1:
        if words.size or (count and not present.size):
            raise CodecError(f"a model of symbols is damaged: it fits no {count:,} of them")
        return np.full(count, present[0] if count else 0, np.int32)
    model = _model(costs)
    try:
        symbols: Symbols = _queue.RangeDecoder(words).decode(model, count)
    except AssertionError as error:  # constriction's way of saying so
        raise CodecError(
            f"symbols are damaged: {len(body):,} bytes do not give {count:,}"
        ) from error
    if not np.array_equal(_words(symbols, model), words):  # cut off, or too long
        raise CodecError(f"symbols are damaged: {len(body):,} bytes are not those of {count:,}")
    return symbols


def entropy_bits(symbols: NDArray[np.integer]) -> float:
    """Bits of symbols, of any shape, with the best fixed model (Shannon), without the model."""
    if not symbols.size:
        return 0.0
    counts = np.bincount((symbols - symbols.min()).ravel())
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / symbols.size)).sum())


def _words(symbols: Symbols, model: Any) -> NDArray[np.uint32]:
    encoder = _queue.RangeEncoder()
    encoder.encode(symbols, model)
    words: NDArray[np.uint32] = encoder.get_compressed()
    return words


def _costs(counts: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Bits of each symbol, in eighths; ``_ABSENT`` for those that do not occur."""
    costs = np.full(counts.size, _ABSENT, np.uint8)
    seen = counts > 0
    bits = -np.log2(counts[seen] / counts.sum())
    costs[seen] = np.minimum(np.rint(bits * _STEPS), _ABSENT - 1)
    return costs


def _model(costs: NDArray[np.uint8]) -> Any:
    whole, part = np.divmod(costs.astype(np.int64), _STEPS)
    weights = np.where(costs == _ABSENT, 0, np.maximum(_FRACTIONS[part] >> whole, 1))
    return _models.Categorical(weights / weights.sum(), perfect=False)
