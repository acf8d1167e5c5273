"""Seeded permutations that are the same on every platform and Python version.

They use integer hashing, `random.Random.random`, whose stream Python guarantees, and PCG64, whose stream NumPy
guarantees.
"""

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """The 64-bit finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permuted(index: int, size: int, key: int) -> int:
    """The value at `index` of a keyed permutation of 0..size-1: sampling without replacement in constant memory.

    A four-round Feistel network on the next even number of bits with cycle walking: it is applied until the value is
    below `size` (Black and Rogaway, 2002).
    """
    half = ((size - 1).bit_length() + 1) // 2 or 1
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round in range(4):
            left, right = right, left ^ (mix(key ^ mix(right * 4 + round)) & mask)
        index = left << half | right
        if index < size:
            return index


def shuffle(items: list[Any], seed: int) -> None:
    """Fisher-Yates shuffle in place with `Random.random`; `Random.shuffle` may change between Python versions."""
    draw = random.Random(seed).random
    for last in range(len(items) - 1, 0, -1):
        other = int(draw() * (last + 1))
        items[last], items[other] = items[other], items[last]


def seeded_order(count: int, *seed: int) -> NDArray[np.int64]:
    """A permutation [count] of 0..count-1: the argsort of raw PCG64 output.

    NumPy guarantees that stream between versions, but not the result of `Generator.permutation`.
    """
    return np.argsort(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count), kind="stable")
