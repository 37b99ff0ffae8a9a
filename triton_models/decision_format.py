"""What the sidecar writes about its decisions, and what it is joined with: two Arrow schemas.

**Decision**, one row per logged request (:func:`decision_schema`); ``serve`` writes it, ``ray_train join``
and ``ray_train experiment`` read it. Symbols as in :mod:`triton_models.surface`: D and E embedding
dimensions, W controlled heads, M objectives.

======================================  =====================================================
``request_id``                          string, unique
``timestamp``                           timestamp[us, UTC], when the answer was made
``user_id``                             string, A/B unit; as sent, or a salted hash of it
                                        (``puts.user_ids``); null: the request named no user
``cohort``                              string or null
``route``                               ``rank`` or ``weights``
``arm``, ``policy_version``             string, int64: what the operating policy said
``source``                              ``value_network``, ``production``, ``static`` or ``exploration``
``reason``                              string: why production weights were served; else null
``explored``                            bool: the action was drawn at random
``action``                              int32 or null: number of the grid action served
``propensity``                          double: probability of the drawn action, given that the
                                        request explores; null where nothing was drawn
``weight_<head>``                       double, each controlled head: the weight really used
``scalarization``                       list<double>[M], λ; null where none was used
``value_<objective>``                   double: Q of the chosen action; null without the network
``user_embedding``                      list<float>, D entries or null
``history_embedding``                   list<fixed_size_list<float>[E]>, newest last, the newest N
``history_action``, ``history_age_s``   list<string>, list<float>, same length
``context_<name>``                      string
``surface_fingerprint``                 string
``frontier_fingerprint``                string or null: frontier of the policy
``run_id``                              string or null: run of the model version that chose; null where
                                        none did, and where its run is not known yet
``log_probability``                     double in (0, 1]: probability with which a request of this
                                        kind is logged (1 if it explored)
``ranker_ms``, ``value_network_ms``,    double or null: times of the answer
``added_ms``, ``total_ms``
``trace_id``                            string or null: W3C trace id, 32 hex digits
======================================  =====================================================

The state is the request's own, in raw form. Where it cannot be written as these columns (wrong dimensions,
NaN, missing parts: what made the value network fall back, too), all of it is null together. A history
longer than N is cut to its newest N entries *of the surface's action types*, as the encoder uses them;
entries of other types are left out before that.

**Event**, one row per engagement (:func:`event_schema`); the company writes it: ``request_id``,
``timestamp``, ``event`` (an objective or a metric), ``value`` (null: 1), ``event_id`` (rows of a request
with the same one are one event; null: rows that agree in everything are).

``user_embedding`` is a plain list although its length is fixed: Arrow up to 25 writes null fixed-size lists
to Parquet and cannot read them back (apache/arrow issue 35692). Entries of the history are never null.

Files carry the surface as JSON in their metadata (``puts.surface``).
"""

from __future__ import annotations

import json

import pyarrow as pa

from triton_models.arrow_kinds import fits
from triton_models.errors import LogError, SurfaceError
from triton_models.surface import Surface

DECISION_VERSION = 1

SURFACE_KEY = b"puts.surface"
VERSION_KEY = b"puts.decision_version"
USER_IDS_KEY = b"puts.user_ids"
"""``raw`` or ``hashed``: how to bring user ids of other data together with those of the file."""

INSTANT = pa.timestamp("us", tz="UTC")


def decision_schema(surface: Surface, *, user_ids: str = "raw") -> pa.Schema:
    """The columns of a decision of this surface, with the surface in the metadata."""
    fields = [
        *(_required("request_id", pa.string()), _required("timestamp", INSTANT)),
        *(pa.field("user_id", pa.string()), pa.field("cohort", pa.string())),
        *(_required("route", pa.string()), _required("arm", pa.string())),
        *(_required("policy_version", pa.int64()), _required("source", pa.string())),
        *(pa.field("reason", pa.string()), _required("explored", pa.bool_())),
        *(pa.field("action", pa.int32()), pa.field("propensity", pa.float64())),
        *(_required(f"weight_{head}", pa.float64()) for head in surface.controlled_heads),
        pa.field("scalarization", pa.list_(pa.float64())),
        *(pa.field(f"value_{name}", pa.float64()) for name in surface.objectives),
        *state_fields(surface),
        _required("surface_fingerprint", pa.string()),
        *(pa.field("frontier_fingerprint", pa.string()), pa.field("run_id", pa.string())),
        _required("log_probability", pa.float64()),
        *(pa.field(f"{leg}_ms", pa.float64()) for leg in ("ranker", "value_network", "added", "total")),
        pa.field("trace_id", pa.string()),
    ]
    metadata = {
        SURFACE_KEY: json.dumps(surface.to_dict()).encode(),
        VERSION_KEY: str(DECISION_VERSION).encode(),
        USER_IDS_KEY: user_ids.encode(),
    }
    return pa.schema(fields, metadata=metadata)


def state_fields(surface: Surface) -> list[pa.Field]:
    """The columns of the request state; null together where the state could not be written."""
    state = surface.state
    fields = [pa.field("user_embedding", pa.list_(pa.float32()))]
    if state.history is not None:
        item = pa.list_(pa.float32(), state.history.embedding)
        fields += [
            pa.field("history_embedding", pa.list_(item)),
            pa.field("history_action", pa.list_(pa.string())),
            pa.field("history_age_s", pa.list_(pa.float32())),
        ]
    return fields + [pa.field(f"context_{name}", pa.string()) for name in state.context]


def event_schema() -> pa.Schema:
    """The columns of an engagement event."""
    return pa.schema(
        [
            *(_required("request_id", pa.string()), _required("timestamp", INSTANT)),
            *(_required("event", pa.string()), pa.field("value", pa.float64())),
            pa.field("event_id", pa.string()),
        ]
    )


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def read_surface(schema: pa.Schema, *, source: str) -> Surface:
    """The surface that a file of decisions was written for.

    Raises:
        LogError: the file is not one of decisions, or is of a version that is not known here.
    """
    metadata = schema.metadata or {}
    if SURFACE_KEY not in metadata:
        raise LogError(f"{source}: is not a file of decisions: its metadata lack {SURFACE_KEY.decode()}")
    version = metadata.get(VERSION_KEY, b"").decode(errors="replace")
    if version != str(DECISION_VERSION):
        raise LogError(f"{source}: decisions of version {version or '?'}; this reads {DECISION_VERSION}")
    try:
        return Surface.from_dict(json.loads(metadata[SURFACE_KEY]), source=source)
    except (ValueError, RecursionError, SurfaceError) as error:
        raise LogError(f"{source}: the surface in its metadata cannot be read: {error}") from error


def check_decisions(surface: Surface, schema: pa.Schema, *, source: str) -> None:
    """Refuse a file whose columns are not decisions of this surface.

    A file that another program rewrote may lack the metadata; then the columns alone decide.

    Raises:
        LogError: naming the columns that are missing, of another type, or not known.
        SurfaceMismatchError: the file says that it was written for another surface.
    """
    if SURFACE_KEY in (schema.metadata or {}):
        surface.require_same(read_surface(schema, source=source), this="the surface", that=source)
    problems = _problems(schema, decision_schema(surface))
    known = set(decision_schema(surface).names)
    unknown = [n for n in schema.names if n.startswith(("weight_", "value_")) and n not in known]
    if unknown:
        problems.append(f"the surface does not know {', '.join(unknown)}")
    if problems:
        raise LogError(f"{source}: not decisions of surface {surface.name}: {'; '.join(problems)}")


def check_events(schema: pa.Schema, *, source: str) -> None:
    """Refuse a file whose columns are not events; ``value`` and ``event_id`` may be missing.

    Raises:
        LogError: naming the columns that are missing or of another type.
    """
    problems = _problems(schema, event_schema(), optional=frozenset({"value", "event_id"}))
    if problems:
        raise LogError(f"{source}: not events: {'; '.join(problems)}")


def _problems(actual: pa.Schema, wanted: pa.Schema, optional: frozenset[str] = frozenset()) -> list[str]:
    problems = []
    missing = [name for name in wanted.names if name not in actual.names and name not in optional]
    if missing:
        problems.append(f"missing {', '.join(missing)}")
    twice = [name for name in wanted.names if actual.names.count(name) > 1]
    if twice:
        problems.append(f"more than one column called {', '.join(twice)}")
    problems += [
        f"{field.name} is {actual.field(field.name).type}, expected {field.type}"
        for field in wanted
        if actual.names.count(field.name) == 1 and not fits(actual.field(field.name).type, field.type)
    ]
    return problems
