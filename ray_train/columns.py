"""Arrow columns → NumPy arrays, whatever Arrow type the writer of a log chose for them.

Logs come from other people's programs: strings may be ``large_string`` or dictionary-encoded, vectors
plain lists or fixed-size ones of float32 or float64, instants of any unit and time zone. These helpers
hide that. None of them loops over rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from triton_models.arrow_kinds import is_list as is_list

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

EARLIEST = np.datetime64("0001-01-01T00:00:00", "us")
"""The first instant of ``datetime``; timestamps before it come from a wrong unit."""
OUTSIDE = (np.datetime64("0000-01-01", "us"), np.datetime64("10001-01-01", "us"))
"""Instants that are surely before and after every ``datetime``."""


def column(table: pa.Table, name: str) -> pa.Array:
    """One column as one contiguous array; extension types are replaced by their storage."""
    array = table.column(name).combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # more than 2 GiB of strings does not fit one array
        array = pa.chunked_array([c.cast(_large(c.type)) for c in array.chunks]).combine_chunks()
    return unwrapped(array)


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) else kind


def unwrapped(array: pa.Array) -> pa.Array:
    """The storage of an extension array (tensor types of Ray or Arrow), or the array itself."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def list_lengths(array: pa.Array) -> IntArray:
    """Entries per row of a list column, int64 [n]; -1 where the row is null."""
    if pa.types.is_null(array.type):
        return np.full(len(array), -1, dtype=np.int64)
    return np.asarray(pc.fill_null(pc.list_value_length(array), -1)).astype(np.int64)


def flattened(array: pa.Array) -> pa.Array:
    """All entries of a list column, one after the other; null rows have none."""
    if pa.types.is_null(array.type):  # a writer that saw only empty lists
        return array.slice(0, 0)
    return unwrapped(pc.list_flatten(array))


def floats(array: pa.Array, dtype: type[np.floating[Any]] = np.float32) -> npt.NDArray[Any]:
    """Numbers as floats; null becomes NaN, and what is too large for ``dtype`` infinity."""
    values = array.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values, dtype=dtype)


def booleans(array: pa.Array) -> pa.Array:
    """Yes and no, which some writers keep as numbers; null is no."""
    return pc.fill_null(array.cast(pa.bool_()), False)


def strings(array: pa.Array) -> pa.Array:
    """Strings as ``large_string`` (their offsets never overflow); integers are written out in decimal."""
    return array if pa.types.is_large_string(array.type) else pc.cast(array, pa.large_string())


def codes(array: pa.Array, words: tuple[str, ...]) -> IntArray:
    """Position in ``words`` plus one; 0 for null and for what is not among them."""
    found = pc.index_in(strings(array), value_set=pa.array(words, pa.large_string()))
    return np.asarray(pc.fill_null(found, -1)).astype(np.int64) + 1


def instants(array: pa.Array) -> npt.NDArray[np.datetime64]:
    """Timestamps in UTC as ``datetime64[us]``; those without a time zone are taken as UTC.

    They may lie outside the years 1 to 9999, which is all that ``datetime`` knows: see :data:`EARLIEST`.
    """
    if array.type.unit in ("s", "ms"):  # these reach further than microseconds, where they would wrap around
        values = np.asarray(array.to_numpy(zero_copy_only=False))
        low, high = (edge.astype(values.dtype) for edge in OUTSIDE)
        return np.asarray(np.clip(values, low, high)).astype("datetime64[us]")
    cast = array.cast(pa.timestamp("us", tz=array.type.tz or "UTC"), safe=False)
    return np.asarray(cast.to_numpy(zero_copy_only=False)).astype("datetime64[us]")
