"""Whether a column of somebody's file is of the kind that we expect, whatever type its writer chose."""

from __future__ import annotations

import pyarrow as pa


def is_list(kind: pa.DataType) -> bool:
    """Whether a type holds one list per row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def fits(actual: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of type ``actual`` can be read where ``wanted`` is expected.

    Strings of any layout, vectors as plain or fixed-size lists of any number type, instants of any unit
    and zone, any number for any number, and a column that never had a value for anything.
    """
    if isinstance(actual, pa.BaseExtensionType):
        actual = actual.storage_type
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(actual))
    if is_list(wanted):
        sized = pa.types.is_fixed_size_list(actual) and pa.types.is_fixed_size_list(wanted)
        if not is_list(actual) or (sized and actual.list_size != wanted.list_size):
            return False
        return fits(actual.value_type, wanted.value_type)
    if pa.types.is_null(actual):  # an optional column that never had a value
        return True
    if pa.types.is_string(wanted):
        return _is_text(actual)
    if pa.types.is_integer(wanted) or pa.types.is_boolean(wanted):
        return _is_number(actual) or bool(pa.types.is_boolean(actual))
    return _is_number(actual)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    return any(check(kind) for check in text)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
