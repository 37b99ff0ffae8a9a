"""When did the arms of an experiment have which shares? Pure.

A ramp gives the treatment 1 %, then 5 %, then 25 % of the users, all under one policy version. Outcomes also
change with the day, so sums over the whole ramp compare the treatment's late days with the control's early
ones. Inside a time in which the shares did not change there is nothing to confound. These times are found
from the decisions alone: bins of ten minutes, and again and again the two neighbours whose shares differ
least are made one, while

    X² = Σ_p Σ_b (c_bp - e_bp)² / e_bp ,   e_bp = c_b· c_·p / c_··

of their requests per arm is what chance gives. Requests of a user come together, so X² is read against its
own median over all neighbouring bins, as far as ten times chance's. What is too small a change to be found is
too small to matter: it moves a lift by less than its own standard error. Too many times cost nothing but
memory.

Shape legend: B bins (neighbours in time), P arms, S strata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_train.chi_square import chi_square_tail

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

BIN_US = 600_000_000
"""Ten minutes: a bin in which a step of a ramp falls mixes no longer than that."""

MOST_BINS = 4096
"""Of a version; longer ones have wider bins."""

MOST_STRATA, MOST_OF_A_VERSION = 32, 16
"""Sums are kept for each of them, and products for each two."""

FALSE_SPLIT = 1e-6
"""Chance that two times of equal shares are taken for different ones."""

MOST_CLUSTERED = 10.0
"""X² of equal shares over what independent requests would give: beyond, it is changes that are frequent."""

MIXED = 0.1
"""Change of an arm's share, relative, from which one had better not add two times up."""

Counts = Mapping[tuple[str, int, int], int]
"""Requests by arm, policy version and bin of ``BIN_US``."""


@dataclass(frozen=True, kw_only=True)
class Strata:
    """Times of equal shares, ascending by version and start. Picklable."""

    versions: tuple[int, ...] = ()
    starts_us: tuple[int, ...] = ()
    """Microseconds since 1970, UTC."""
    counts_SP: tuple[tuple[int, ...], ...] = ()
    """Requests of each arm that were logged."""
    mixed: tuple[int, ...] = ()
    """Versions with more changes than can be told apart."""

    @property
    def size(self) -> int:
        """How many there are; everything is in one where nothing is known."""
        return max(1, len(self.versions))

    def of(self, version: int | None) -> slice:
        """The strata of a version; of all with None."""
        own = [s for s, v in enumerate(self.versions) if version in (None, v)]
        return slice(own[0], own[-1] + 1) if own else slice(0, self.size)

    def numbers(self, version_n: npt.NDArray[np.int64], t_n: npt.NDArray[np.datetime64]) -> IntArray:
        """The stratum of each request."""
        stratum_n = np.zeros(len(t_n), dtype=np.int64)
        t_us = t_n.astype("datetime64[us]").astype(np.int64)
        for version in dict.fromkeys(self.versions):
            own, mine = self.of(version), version_n == version
            after = np.searchsorted(np.array(self.starts_us[own]), t_us[mine], side="right")
            stratum_n[mine] = own.start + np.maximum(after - 1, 0)
        return stratum_n


def bins(t_n: npt.NDArray[np.datetime64]) -> IntArray:
    """The bin of each instant."""
    return np.asarray(t_n.astype("datetime64[us]").astype(np.int64) // BIN_US)


def find_strata(arms: tuple[str, ...], counts: Counts) -> Strata:
    """Times of equal shares, from the requests of all arms."""
    versions = sorted({version for _, version, _ in counts})
    most = min(MOST_OF_A_VERSION, max(1, MOST_STRATA // max(1, len(versions))))
    found: list[tuple[int, int, tuple[int, ...]]] = []
    mixed = []
    for version in versions:
        starts_B, counts_BP = _binned(arms, version, counts)
        kept, torn = _merged(counts_BP, most)
        ends = [*kept[1:], len(starts_B)]
        for start, end in zip(kept, ends, strict=True):
            total_P = counts_BP[start:end].sum(axis=0)
            found.append((version, int(starts_B[start]), tuple(total_P.tolist())))
        mixed += [version] if torn else []
    return Strata(
        versions=tuple(version for version, _, _ in found),
        starts_us=tuple(start for _, start, _ in found),
        counts_SP=tuple(total for _, _, total in found),
        mixed=tuple(mixed),
    )


def _binned(arms: tuple[str, ...], version: int, counts: Counts) -> tuple[IntArray, IntArray]:
    """Starts in microseconds [B] and requests [B, P] of the bins of a version that have any."""
    rows = [(number, arms.index(arm), n) for (arm, own, number), n in counts.items() if own == version]
    number, arm, n = np.array(rows, dtype=np.int64).T
    width = -(-(int(number.max() - number.min()) + 1) // MOST_BINS)
    present, code = np.unique(number // width, return_inverse=True)
    counts_BP = np.zeros((len(present), len(arms)), dtype=np.int64)
    np.add.at(counts_BP, (code, arm), n)
    return present * width * BIN_US, counts_BP


def _merged(counts_BP: IntArray, most: int) -> tuple[list[int], bool]:
    """First bins of the times of equal shares; and whether unequal ones had to be made one."""
    present = counts_BP[:, counts_BP.sum(axis=0) > 0].astype(np.float64)
    firsts, freedom = list(range(len(present))), present.shape[1] - 1
    if freedom < 1:
        return firsts[:1], False
    square = _squares(present)
    middle = float(np.median(square)) if len(square) else 0.0
    clustered = np.clip(middle / _quantile(0.5, freedom), 1.0, MOST_CLUSTERED)
    limit, torn = _quantile(FALSE_SPLIT, freedom) * clustered, False
    while len(square):
        i = int(np.argmin(square))
        if square[i] > limit:
            if len(firsts) <= most:
                break
            torn |= _apart(present[i], present[i + 1])
        present[i] += present[i + 1]
        present = np.delete(present, i + 1, axis=0)
        square = np.delete(square, i)
        del firsts[i + 1]
        for j in (i - 1, i):
            if 0 <= j < len(square):
                square[j] = _squares(present[j : j + 2])[0]
    return firsts, torn


def _squares(counts_BP: FloatArray) -> FloatArray:
    """X² of every two neighbours, [B - 1]; by the shares ``s`` of each and of both."""
    one, two = counts_BP[:-1], counts_BP[1:]
    n_one, n_two = one.sum(axis=1, keepdims=True), two.sum(axis=1, keepdims=True)
    both = (one + two) / (n_one + n_two)
    gap = one / n_one - two / n_two
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(both > 0, gap**2 / both, 0.0)
    return np.asarray((n_one * n_two / (n_one + n_two))[:, 0] * terms.sum(axis=1))


def _apart(one_P: FloatArray, two_P: FloatArray) -> bool:
    """Whether a share is another by more than ``MIXED``."""
    shares = np.stack([one_P / one_P.sum(), two_P / two_P.sum()])
    return bool((shares.max(axis=0) > (1.0 + MIXED) * shares.min(axis=0)).any())


def _quantile(tail: float, freedom: int) -> float:
    """The value that χ² exceeds with a chance of ``tail``, by bisection."""
    low, high = 0.0, 100.0 + 10.0 * freedom
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if chi_square_tail(middle, freedom) > tail else (low, middle)
    return high
