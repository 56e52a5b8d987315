"""Randomness that depends on *what is drawn*, never on who draws it: Philox streams keyed by (seed, sample ordinal).

The ordinal of a sample is its number in the whole run: step * global batch + place in the batch. Order, crop, caption,
dropout, sigma and noise of a sample are read from streams that only (seed, label, ordinal, purpose) decide, so they are
the same on any number of ranks and loader workers, and after any resume. There is no generator state to save.

Philox (Salmon et al. 2011) is a counter-based generator: a 128-bit key and a 256-bit counter give a block of output.
The key is made of (seed, label), the upper words of the counter of (purpose, ordinal), and the lowest word counts.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of the format: a change changes every run."""

    SHARD_ORDER = 1
    SAMPLE_ORDER = 2
    BUCKET_ORDER = 3
    FRAMES = 4
    CROP = 5
    CAPTION = 6
    DROPOUT = 7
    SIGMA = 8
    NOISE = 9
    AUGMENTATION = 10
    POSTERIOR = 11
    REPLACEMENT = 12
    FIRST_FRAME = 13


class Streams:
    """All streams of one training stage."""

    def __init__(self, seed: int, label: str = "") -> None:
        digest = hashlib.sha256(f"{seed}/{label}".encode()).digest()
        self._key = np.frombuffer(digest[:16], dtype=np.uint64)

    def bits(self, purpose: Purpose, a: int, b: int = 0) -> np.random.Philox:
        """The bit generator of (purpose, a, b)."""
        counter = np.array([0, int(purpose), a, b], dtype=np.uint64)
        return np.random.Philox(key=self._key, counter=counter)

    def draws(self, purpose: Purpose, ordinal: int) -> np.random.Generator:
        """Numbers for one sample: uniform, normal and so on."""
        return np.random.Generator(self.bits(purpose, ordinal))

    def permutation(self, purpose: Purpose, size: int, a: int, b: int = 0) -> np.ndarray:
        """A permutation of range(size), int64.

        Sorting raw 64-bit words depends on the bit stream only, which numpy promises not to change between versions
        (it promises no such thing for `Generator.permutation`).
        """
        return np.argsort(self.bits(purpose, a, b).random_raw(size), kind="stable")
