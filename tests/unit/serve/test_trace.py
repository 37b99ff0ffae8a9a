"""W3C trace context: the recommendation's own examples and traps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.trace import NO_TRACE, read_trace

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def read(*pairs: tuple[str, str]) -> tuple[str | None, dict[str, str]]:
    trace = read_trace([(name.encode(), value.encode("latin-1")) for name, value in pairs])
    return trace.trace_id, trace.headers


def test_goes_through_unchanged() -> None:
    state = "rojo=00f067aa0ba902b7,congo@tenant=t61rcWkgMzE"
    assert read(("accept", "*/*"), ("traceparent", PARENT), ("tracestate", state)) == (
        TRACE_ID,
        {"traceparent": PARENT, "tracestate": state},
    )


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "-more",  # version 00 has nothing behind the flags
        PARENT + "\x00",
        "ff" + PARENT[2:],
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"01-{TRACE_ID}-00f067aa0ba902b7-01more",
        PARENT.replace("4", "é", 1),
    ],
)
def test_a_malformed_parent_is_dropped_and_the_state_with_it(parent: str) -> None:
    assert read(("traceparent", parent), ("tracestate", "a=b")) == (None, {})


def test_later_versions_are_understood_as_far_as_we_know_them() -> None:
    later = f"cc{PARENT[2:]}-what-the-future-will-be-like"
    assert read(("traceparent", later)) == (TRACE_ID, {"traceparent": later})


def test_two_parents_are_none() -> None:
    assert read(("traceparent", PARENT), ("traceparent", PARENT)) == (None, {})


def test_states_of_several_headers_are_one() -> None:
    assert read(("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2, c=3"))[1] == {
        "traceparent": PARENT,
        "tracestate": "a=1,b=2, c=3",
    }


@pytest.mark.parametrize(
    "state",
    ["a", "a=", "A=1", "a=1,a=2", "a=\x01", "é=1", ",".join(f"k{i}=1" for i in range(33)), "a=" + "x" * 600],
)
def test_a_malformed_state_is_dropped_alone(state: str) -> None:
    assert read(("traceparent", PARENT), ("tracestate", state)) == (TRACE_ID, {"traceparent": PARENT})


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"traceparent", b"tracestate", b"other"]),
        st.binary(max_size=80) | st.just(PARENT.encode()),
    )
)


@given(HEADERS)
def test_whatever_comes_is_fit_for_grpc_metadata(headers: list[tuple[bytes, bytes]]) -> None:
    trace = read_trace(headers)
    assert (trace == NO_TRACE) == (trace.trace_id is None)
    for value in trace.headers.values():
        assert value.isascii()
        assert value.isprintable()
