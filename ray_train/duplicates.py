"""Finding request ids that occur twice in a log of any size, with eight bytes a row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_train import columns


def hash_strings(array: pa.Array) -> npt.NDArray[np.uint64]:
    """64-bit multilinear hash of strings: ``Σ_j byte_j · r_j + length · r_len  mod 2^64``, then mixed.

    With random odd ``r_j`` two different strings collide with a chance below 2^-56, so that ten million
    rows have a false duplicate once in a thousand logs. Fixed seed: the same on every machine.
    """
    array = columns.strings(array)
    rows = len(array)
    if rows == 0:
        return np.zeros(0, dtype=np.uint64)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + rows + 1]
    lengths = np.diff(offsets)
    data = array.buffers()[2]
    raw = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    raw = raw[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    factors = np.random.default_rng(0x5EED).integers(
        0, 2**64, size=int(lengths.max()) + 1, dtype=np.uint64
    ) | np.uint64(1)
    position = np.arange(len(raw)) - np.repeat(starts, lengths)
    # Differences of running sums, modulo 2^64, are the sums per string; empty strings included.
    running = np.concatenate([[np.uint64(0)], np.cumsum(raw.astype(np.uint64) * factors[position + 1])])
    total = running[starts + lengths] - running[starts] + lengths.astype(np.uint64) * factors[0]
    total ^= total >> np.uint64(31)
    total *= np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(total ^ (total >> np.uint64(29)))


def later_occurrences(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Positions whose hash occurred before, ascending."""
    order = np.argsort(hashes, kind="stable")
    repeated = hashes[order][1:] == hashes[order][:-1]
    return np.sort(order[1:][repeated])
