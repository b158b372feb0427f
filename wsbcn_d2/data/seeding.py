"""Random numbers that depend on a key and not on the numbers drawn before.

With generators that are seeded once, every number depends on the number of processes and workers,
on evaluations in between, and on where a run was resumed. Here the generators are seeded for each
sample and each forward pass, from a key that identifies it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["hashed", "seed_all", "seeded"]


def hashed(*key: int | str, size: int = 8) -> int:
    """Hash a key to a number of ``size`` bytes, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=size).digest(), "little")


def _seed_python_and_numpy(key: tuple[int | str, ...]) -> None:
    # Keys of their own: both are Mersenne twisters, and would draw the same numbers.
    random.seed(hashed("python", *key, size=16))
    words = hashed("numpy", *key, size=16).to_bytes(16, "little")
    np.random.seed(np.frombuffer(words, dtype=np.uint32))


def seed_all(*key: int | str) -> None:
    """Seed the generators of Python, numpy and torch, including those of all CUDA devices."""
    _seed_python_and_numpy(key)
    torch.manual_seed(hashed("torch", *key))


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """A context in which the CPU's generators are seeded with ``key``, and then restored."""
    state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        _seed_python_and_numpy(key)
        torch.default_generator.manual_seed(hashed("torch", *key))
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.default_generator.set_state(state[2])
