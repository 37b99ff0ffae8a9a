from __future__ import annotations

import json

import pyarrow as pa
import pytest

from triton_models.decision_format import (
    SURFACE_KEY,
    VERSION_KEY,
    check_decisions,
    check_events,
    decision_schema,
    event_schema,
    read_surface,
    state_fields,
)
from triton_models.errors import LogError, SurfaceMismatchError
from triton_models.surface import Surface


def test_columns_follow_the_surface(surface: Surface) -> None:
    schema = decision_schema(surface)
    assert [n for n in schema.names if n.startswith(("weight_", "value_"))] == [
        *("weight_repin", "weight_p2p", "value_repin", "value_p2p", "value_network_ms")
    ]
    assert schema.field("user_embedding").type == pa.list_(pa.float32())
    assert schema.field("history_embedding").type == pa.list_(pa.list_(pa.float32(), 3))
    assert [f.name for f in state_fields(surface)][-2:] == ["context_device", "context_daypart"]
    assert read_surface(schema, source="x") == surface
    check_decisions(surface, schema, source="x")


def test_a_surface_without_history_and_context(surface: Surface) -> None:
    bare = Surface.from_dict(surface.to_dict() | {"state": {"user_embedding": 4}})
    assert [field.name for field in state_fields(bare)] == ["user_embedding"]
    check_decisions(bare, decision_schema(bare), source="x")


def test_types_of_another_writer_are_fine(surface: Surface) -> None:
    schema = decision_schema(surface).remove_metadata()
    changes = {
        "request_id": pa.large_string(),
        "timestamp": pa.timestamp("ns"),
        "arm": pa.dictionary(pa.int32(), pa.string()),
        "user_embedding": pa.list_(pa.float64(), 4),
        "reason": pa.null(),
        "action": pa.int64(),
    }
    for name, kind in changes.items():
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    check_decisions(surface, schema.append(pa.field("ingested_at", pa.int64())), source="x")


def _without(schema: pa.Schema, name: str) -> pa.Schema:
    return schema.remove(schema.get_field_index(name))


def test_what_does_not_fit_is_named_in_one_line(surface: Surface) -> None:
    good = decision_schema(surface)
    index = good.get_field_index("user_embedding")
    wrong = good.set(index, pa.field("user_embedding", pa.list_(pa.string())))
    cases = {
        "missing arm": _without(good, "arm"),
        "user_embedding is list<": wrong,
        "more than one column called arm": good.append(pa.field("arm", pa.string())),
        "does not know weight_click": good.append(pa.field("weight_click", pa.float64())),
    }
    for expected, schema in cases.items():
        with pytest.raises(LogError, match=r"^D/x\.parquet: not decisions of surface small: ") as caught:
            check_decisions(surface, schema, source="D/x.parquet")
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def test_files_of_another_surface_or_of_none_are_refused(surface: Surface) -> None:
    other = Surface.from_dict(surface.to_dict() | {"cohorts": ["core"]})
    with pytest.raises(SurfaceMismatchError, match="cohorts"):
        check_decisions(surface, decision_schema(other), source="x")
    with pytest.raises(LogError, match="not a file of decisions"):
        read_surface(pa.schema([]), source="x")
    for changed in (
        {VERSION_KEY: b"9"},
        {SURFACE_KEY: b"{"},
        {SURFACE_KEY: json.dumps({"name": 3}).encode()},
    ):
        metadata = {**decision_schema(surface).metadata, **changed}
        with pytest.raises(LogError, match=r"^x: "):
            read_surface(pa.schema([], metadata=metadata), source="x")


def test_events(surface: Surface) -> None:
    check_events(event_schema(), source="x")
    check_events(_without(_without(event_schema(), "value"), "event_id"), source="x")
    broken = _without(event_schema(), "request_id").set(1, pa.field("event", pa.list_(pa.string())))
    with pytest.raises(LogError, match="not events: missing request_id; event is list<"):
        check_events(broken, source="x")
