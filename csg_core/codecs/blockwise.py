"""Uniform quantisation in blocks, 1 to 8 bits a value, rounded by chance or not; fixed rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import (
    Codec,
    CodecError,
    Values,
    declared,
    require_finite,
    require_length,
    require_size,
    total,
)
from csg_core.entries import Parts

Blocks_BN = NDArray[np.float32]  # B blocks of N values

_SEED = 4  # bytes
_BITS_OF_MODELS = 4  # at least
_BITS_OF_FEEDBACK = 3  # at least: an error is at most 2 / (levels - 1) of the largest magnitude
_MOST_BITS, _SMALL_BLOCK = 8, 256  # with fewer, or larger, a variance of 1 leaves small ones zero
_AT_ONCE = 2**16  # values, of whole blocks
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Uniform(Codec):
    """Blocks of values on a uniform grid from minus to plus the block's largest magnitude.

    Rounding is stochastic, so the expectation of what is decoded is the value (QSGD: Alistarh et
    al., 2017, section 3.1, with the largest magnitude as the norm).

    With ``rotate``, blocks are first turned by a randomised Hadamard transform, after which all
    values are of like size (Suresh et al., 2017, section 3). One bit and ``rotate`` is DRIVE
    (Vargaftik et al., 2021, algorithm 1): the signs, and the scale by which a block goes as far in
    its own direction as it did. That is without bias for a rotation drawn from all there are; for
    one Hadamard transform, a value beside few others that count is off in the mean, too (of 1 and
    0.5 among zeros: 1.25 and 0), so that it needs feedback.

    Rounded by chance, 1 and 2 bits may leave out more than there was, and with feedback that adds
    up to many updates. With ``nearest`` the error of a block is always less than the block, which
    is what feedback takes (Karimireddy et al., 2019, lemma 3): each value becomes the level
    nearest to it, and the scale is that of least squares for these levels, for one bit the mean
    magnitude (Seide et al., 2014, section 3). It has a bias, and needs feedback.

    Attributes:
        bits: of a value; 2^bits - 1 levels with zero among them, or two for one bit.
        block: values that share a scale; a power of two.
        rotate: whether blocks are turned.
        nearest: whether values are rounded to the nearest level, and not by chance.
    """

    bits: int = 8
    block: int = 256
    rotate: bool = False
    nearest: bool = False

    name = "uniform"

    def __post_init__(self) -> None:
        declared(self)
        if not 1 <= self.bits <= _MOST_BITS:
            raise ValueError(f"bits={self.bits}: give 1 to 8")
        if not 8 <= self.block <= 2**16 or self.block & (self.block - 1):
            raise ValueError(f"block={self.block}: give a power of two from 8 to 65536, as 256")

    @property
    def holds_models(self) -> bool:
        return self.bits >= _BITS_OF_MODELS

    @property
    def bears_statistics(self) -> bool:
        return self.bits == _MOST_BITS and self.block <= _SMALL_BLOCK

    @property
    def bears_feedback(self) -> bool:
        return self.bits >= _BITS_OF_FEEDBACK or self.nearest or self._drive

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:
        require_size(values, parts, self.name)
        require_finite(values, self.name)
        seed = rng.bytes(_SEED) if self.rotate else b""
        signs = self._signs(seed) if self.rotate else None
        written = [self._written(values[start : start + _AT_ONCE], signs, rng)
                   for start in range(0, values.size, _AT_ONCE)]  # fmt: skip
        return seed + b"".join(scales for scales, _ in written) + b"".join(p for _, p in written)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        require_length(body, self.most_bytes(parts), self.name)
        count = total(parts)
        blocks = self._count(count)
        start = _SEED if self.rotate else 0
        end = start + 4 * blocks
        scales_B1 = np.frombuffer(body[start:end], "<f4").reshape(-1, 1)
        packed = np.frombuffer(body[end:], np.uint8)
        planes = np.unpackbits(packed, count=blocks * self.block * self.bits)
        weights = (1 << np.arange(self.bits - 1, -1, -1)).astype(np.uint8)
        indices_BN = (planes.reshape(-1, self.bits) @ weights).reshape(-1, self.block)
        blocks_BN = (self._units(indices_BN) * scales_B1).astype(np.float32)
        if self.rotate:
            blocks_BN = _hadamard(blocks_BN) * self._signs(bytes(body[:_SEED]))
        return np.ascontiguousarray(blocks_BN.reshape(-1)[:count])

    def most_bytes(self, parts: Parts) -> int:
        blocks = self._count(total(parts))
        return (_SEED if self.rotate else 0) + 4 * blocks + -(-blocks * self.block * self.bits // 8)

    @property
    def _levels(self) -> int:
        return 2 if self.bits == 1 else 2**self.bits - 1

    @property
    def _drive(self) -> bool:
        return self.bits == 1 and self.rotate and not self.nearest

    def _count(self, size: int) -> int:
        return -(-size // self.block)

    def _written(
        self, values: Values, signs: NDArray[np.float32] | None, rng: np.random.Generator
    ) -> tuple[bytes, bytes]:
        """Scales and levels of some blocks, turned by ``signs`` if they are given."""
        blocks_BN = np.zeros((self._count(values.size), self.block), np.float32)
        blocks_BN.reshape(-1)[: values.size] = values
        if signs is not None:
            most = _LARGEST / self.block**1.5  # in either direction, sums have to be finite
            if np.abs(blocks_BN).max() > most:
                raise CodecError(f"a value is too large for {self.name} to turn: beyond {most:.3g}")
            blocks_BN = _hadamard(blocks_BN * signs)
        scales_B1 = self._scales(blocks_BN)
        with np.errstate(divide="ignore", invalid="ignore"):
            unit_BN = np.where(scales_B1 > 0, blocks_BN / scales_B1, 0.0).astype(np.float32)
        indices_BN = self._indices(unit_BN, rng)
        if self.nearest:
            scales_B1 = self._fitted(blocks_BN, indices_BN, values.size)
        planes = np.unpackbits(indices_BN[..., None], axis=-1)[..., 8 - self.bits :]
        return scales_B1.astype("<f4").tobytes(), np.packbits(planes).tobytes()

    def _indices(self, unit_BN: Blocks_BN, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The levels, from 0 on, of values from -1 to 1."""
        if self.bits == 1 and (self.rotate or self.nearest):
            return (unit_BN >= 0).astype(np.uint8)
        position: Blocks_BN = (unit_BN + 1) * ((self._levels - 1) / 2)
        if self.nearest:
            return np.rint(position).astype(np.uint8)
        below = np.floor(position)
        drawn = rng.random(position.shape, dtype=np.float32)
        up = drawn >= 1 - (position - below)  # not by their sum, which is rounded
        indices_BN: NDArray[np.uint8] = np.clip(below + up, 0, self._levels - 1).astype(np.uint8)
        return indices_BN

    def _units(self, indices_BN: NDArray[np.uint8]) -> Blocks_BN:
        """What levels stand for, in scales."""
        unit_BN: Blocks_BN = indices_BN * np.float32(2 / (self._levels - 1)) - np.float32(1)
        return unit_BN

    def _fitted(self, blocks_BN: Blocks_BN, indices_BN: NDArray[np.uint8], size: int) -> Blocks_BN:
        """The scale of each block that leaves the least squares for these levels."""
        unit_BN = self._units(indices_BN)
        if not self.rotate:
            unit_BN.reshape(-1)[size:] = 0  # what fills the last block is not sent
        products = np.einsum("bn,bn->b", blocks_BN, unit_BN, dtype=np.float64)
        squares = np.einsum("bn,bn->b", unit_BN, unit_BN, dtype=np.float64)
        scales = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
        scales_B1: Blocks_BN = np.minimum(scales, _LARGEST).astype(np.float32)[:, None]
        return scales_B1

    def _scales(self, blocks_BN: Blocks_BN) -> Blocks_BN:
        if not self._drive:
            peaks: Blocks_BN = np.abs(blocks_BN).max(axis=1, keepdims=True)
            return peaks
        sums = np.abs(blocks_BN).sum(axis=1, keepdims=True, dtype=np.float64)
        squares = np.square(blocks_BN, dtype=np.float64).sum(axis=1, keepdims=True)
        scales: Blocks_BN = np.divide(squares, sums, out=np.zeros_like(sums), where=sums > 0)
        return scales.astype(np.float32)

    def _signs(self, seed: bytes) -> NDArray[np.float32]:
        """From raw Philox bits, which are the same in every version of numpy."""
        drawn = np.random.Philox(key=int.from_bytes(seed, "little"))
        words = drawn.random_raw(-(-self.block // 64)).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), count=self.block)
        return bits.astype(np.float32) * 2 - 1


def _hadamard(blocks_BN: Blocks_BN) -> Blocks_BN:
    """The orthonormal Walsh-Hadamard transform of every row; its own inverse."""
    size = blocks_BN.shape[1]
    done = blocks_BN
    step = 1
    while step < size:
        pairs = done.reshape(len(done), size // (2 * step), 2, step)
        done = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        done = done.reshape(len(blocks_BN), size)
        step *= 2
    scaled: Blocks_BN = (done * np.float32(size**-0.5)).astype(np.float32)
    return scaled
