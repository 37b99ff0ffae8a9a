"""Request bodies, parsed by hand: they carry hundreds of candidates, and are on the path of every page.

:mod:`serve.schema` describes the same bodies for OpenAPI; a test holds the two together.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson

from serve.config import Limits
from serve.context import current_request_id
from triton_models.errors import RequestError, RequestMalformedError, RequestTooLargeError

DEFAULT_K = 25
MAX_NAME = 256
"""Longest request id, user id, cohort or placement."""
MAX_CANDIDATE_NAME = 1024

INT64_MAX = 2**63 - 1

CandidateType = Literal["INT64", "BYTES"]

WEIGHTS_FIELDS = frozenset({"request_id", "user_id", "cohort", "placement", "state", "control"})
RANK_FIELDS = WEIGHTS_FIELDS | {"candidates", "k"}


@dataclass(frozen=True, kw_only=True)
class WeightsRequest:
    """A request for weights."""

    request_id: str
    user_id: str | None
    cohort: str | None
    placement: str | None
    """Where the answer is shown; a policy can exclude placements from exploration."""
    state: Mapping[str, Any] | None
    """Unchecked: what is wrong with it is a fallback, not an error."""
    control: bool


@dataclass(frozen=True, kw_only=True)
class RankRequest(WeightsRequest):
    """A request for a ranking."""

    candidates: list[Any]
    k: int
    features: Mapping[str, memoryview] = field(default_factory=dict)
    """Features of the candidates as raw tensors, name → bytes; of the shape that the configuration states."""


def parse_weights(body: bytes, limits: Limits) -> WeightsRequest:
    """Parse the body of ``/v1/weights``.

    Raises:
        RequestError: one line that says which field is wrong, or which limit is passed.
    """
    return weights_request(_object(body, limits, WEIGHTS_FIELDS), limits)


def weights_request(data: dict[str, Any], limits: Limits) -> WeightsRequest:
    """Check the fields of a request to ``/v1/weights``, whatever form they came in.

    Raises:
        RequestError: as :func:`parse_weights`.
    """
    return WeightsRequest(**_common(data, limits))


def parse_rank(body: bytes, limits: Limits, candidates_type: CandidateType) -> RankRequest:
    """Parse the body of ``/v1/rank``.

    Raises:
        RequestError: one line that says which field is wrong, or which limit is passed.
    """
    return rank_request(_object(body, limits, RANK_FIELDS), limits, candidates_type)


def rank_request(
    data: dict[str, Any],
    limits: Limits,
    candidates_type: CandidateType,
    features: Mapping[str, memoryview] | None = None,
) -> RankRequest:
    """Check the fields of a request to ``/v1/rank``, whatever form they came in.

    Raises:
        RequestError: as :func:`parse_rank`.
    """
    candidates = _candidates(data.get("candidates"), limits, candidates_type)
    k = data.get("k", min(DEFAULT_K, limits.k))
    if type(k) is not int or k < 1:
        raise RequestError(f"k: expected a whole number of at least 1, got {shown(k)}")
    if k > limits.k:
        raise RequestTooLargeError(f"k: at most {limits.k}, got {k}")
    return RankRequest(**_common(data, limits), candidates=candidates, k=k, features=features or {})


def shown(value: object) -> str:
    """A value for a message, short."""
    # Of a container only the kind: repr() of a deeply nested one ends in a RecursionError.
    if value is not None and not isinstance(value, (str, int, float)):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _object(body: bytes, limits: Limits, fields: frozenset[str]) -> dict[str, Any]:
    if len(body) > limits.body_bytes:
        raise RequestTooLargeError(f"body: at most {limits.body_bytes} bytes, got {len(body)}")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestMalformedError(f"body: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise RequestMalformedError(f"body: expected an object, got {type(data).__name__}")
    if not data.keys() <= fields:
        unknown = sorted(data.keys() - fields)[0]
        raise RequestError(f"body: unknown field {shown(unknown)}; known are {', '.join(sorted(fields))}")
    return data


def _common(data: dict[str, Any], limits: Limits) -> dict[str, Any]:
    control = data.get("control", True)
    if type(control) is not bool:
        raise RequestError(f"control: expected true or false, got {shown(control)}")
    state = data.get("state")
    if state is not None and not isinstance(state, dict):
        raise RequestError(f"state: expected an object, got {type(state).__name__}")
    _limit_history(state, limits)
    return {
        "request_id": _name(data, "request_id") or current_request_id() or uuid.uuid4().hex,
        "user_id": _name(data, "user_id"),
        "cohort": _name(data, "cohort"),
        "placement": _name(data, "placement"),
        "state": state,
        "control": control,
    }


def _limit_history(state: dict[str, Any] | None, limits: Limits) -> None:
    history = (state or {}).get("history")
    for column in history.values() if isinstance(history, dict) else ():
        if isinstance(column, (list, np.ndarray)) and len(column) > limits.history:
            raise RequestTooLargeError(
                f"state: at most {limits.history} history entries, got {len(column)}; send the newest"
            )


def _name(data: dict[str, Any], field: str) -> str | None:
    value = data.get(field)
    if value is None:
        return None
    if type(value) is not str or len(value) > MAX_NAME:
        raise RequestError(f"{field}: expected a string of at most {MAX_NAME} characters, got {shown(value)}")
    return value


def _candidates(candidates: object, limits: Limits, kind: CandidateType) -> list[Any]:
    if not isinstance(candidates, list) or not candidates:
        raise RequestError(f"candidates: expected a list of at least one id, got {shown(candidates)}")
    if len(candidates) > limits.candidates:
        raise RequestTooLargeError(f"candidates: at most {limits.candidates}, got {len(candidates)}")
    if kind == "INT64":
        if set(map(type, candidates)) != {int} or max(candidates) > INT64_MAX:
            raise RequestError("candidates: expected whole numbers that fit int64")
    elif set(map(type, candidates)) != {str} or max(map(len, candidates)) > MAX_CANDIDATE_NAME:
        raise RequestError(f"candidates: expected strings of at most {MAX_CANDIDATE_NAME} characters")
    if len(set(candidates)) != len(candidates):
        raise RequestError("candidates: an id appears twice; send each candidate once")
    return candidates
