"""Seeds for everything drawn in a run, each from the run's seed and what it is for."""

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed, 0 to 2**63 - 1, that any process derives alike from the run's seed and a purpose."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def derived_rng(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator with such a seed."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


def derived_numpy_rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator with such a seed, of bits that are the same in every version of numpy."""
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, *purpose)))
