"""How much too high the accuracy of the best of several runs is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

_HALVES = 1000


def best_of_n_optimism(correct: ArrayLike) -> float:
    """How much the best of several runs loses on new images: right or wrong [R >= 1, N >= 2] to a fraction.

    The best is chosen on a random half of the images (the first, where several are level) and read on the other half;
    the mean drop over 1,000 halves, always the same ones for N. About 0 or below where the choice did no harm. Half of
    the images choose less surely than all of them: where runs are equally good the drop is 1.41 times the optimism of a
    choice on all N. Source: M. Stone (1974), J. R. Stat. Soc. B 36, 111-147. Raises ``ValueError`` for N < 2.
    """
    right = np.asarray(correct, np.bool_)
    n = right.shape[1]
    if n < 2:
        raise ValueError("two halves need two images")
    halves, size = _halves(n), n // 2
    first = np.stack([np.bitwise_count(halves & row).sum(axis=1, dtype=np.int64) for row in _packed(right)])
    best = first.argmax(axis=0)
    chosen = first[best, np.arange(len(halves))]
    return float((chosen / size - (right.sum(axis=1)[best] - chosen) / (n - size)).mean())


@lru_cache(maxsize=4)
def _halves(n: int) -> NDArray[np.uint64]:
    """1,000 random choices of n // 2 of n images, as bits [1000, words].

    A fair coin for each image; then as many of the larger side as are too many change sides, drawn at random.
    """
    random = np.random.default_rng(0)
    rows: list[NDArray[np.uint64]] = []
    for _draw in range(_HALVES):
        chosen = random.integers(0, 2, n, dtype=np.bool_)
        excess = int(np.count_nonzero(chosen)) - n // 2
        larger = np.flatnonzero(chosen == (excess > 0))
        chosen[random.choice(larger, abs(excess), replace=False, shuffle=False)] ^= True
        rows.append(_packed(chosen[None])[0])
    return np.stack(rows)


def _packed(table: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """The rows of a table [R, N] as 64-bit words, filled up with zeros."""
    octets = np.packbits(table, axis=1)
    return np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8))).view(np.uint64)
