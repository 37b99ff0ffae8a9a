"""One request state → the state tensors of the served model. NumPy only: this is the serving path.

A state is a mapping shaped like a row of the exploration log::

    {"user_embedding": [D floats],
     "history": {"embedding": [[E floats], …], "action": ["save", …], "age_s": [12.0, …]},
     "context": {"device": "iphone", …}}

with the newest history entry last. Rules, the same as in the batch encoding of training
(``ray_train``), which a test holds equal to this one:

* of a longer history the newest N are used; a shorter one is zero-padded at the back;
* history entries whose action type is not in the vocabulary are left out before that;
* a context value outside the vocabulary, or a missing context field, is code 0, unknown;
* a missing user embedding or history is *incomplete*; an empty history is fine.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.errors import StateIncompleteError, StateInvalidError
from triton_models.surface import HistorySpec, Surface

StateTensors = dict[str, npt.NDArray[Any]]


@lru_cache(maxsize=64)
def action_codes(spec: HistorySpec) -> dict[str, int]:
    """History action type → code; 0 is padding."""
    return {name: code for code, name in enumerate(spec.actions, start=1)}


@lru_cache(maxsize=256)
def context_codes(words: tuple[str, ...]) -> dict[str, int]:
    """Context value → code; 0 is unknown."""
    return {word: code for code, word in enumerate(words, start=1)}


def encode_state(surface: Surface, state: Mapping[str, Any]) -> StateTensors:
    """Encode one request state, without a batch dimension.

    Returns:
        One array per :func:`triton_models.tensors.state_specs` entry, in that order.

    Raises:
        StateIncompleteError: a required field is missing.
        StateInvalidError: a field has the wrong kind or size, or holds NaN or infinity.
    """
    if not isinstance(state, Mapping):
        raise StateInvalidError(f"state: expected an object, got {type(state).__name__}")
    with np.errstate(over="ignore"):  # a number too large becomes infinity, which is refused
        tensors: StateTensors = {"user_embedding": _user_embedding(surface, state)}
        if surface.state.history is not None:
            tensors.update(_history(surface.state.history, state))
    if surface.state.context:
        tensors["context"] = _context(surface, state)
    return tensors


def _floats(values: object, where: str) -> npt.NDArray[np.float32]:
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "fiu":  # NumPy would read "1.0" and true as numbers
            raise TypeError(given.dtype)
        array = given.astype(np.float32, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise StateInvalidError(f"state: {where} must be numbers of one shape") from error
    if not np.isfinite(array).all():
        raise StateInvalidError(f"state: {where} holds NaN, infinity or a number too large for float32")
    return array


def _user_embedding(surface: Surface, state: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    if state.get("user_embedding") is None:
        raise StateIncompleteError("state: user_embedding is missing")
    embedding = _floats(state["user_embedding"], "user_embedding")
    if embedding.shape != (surface.state.user_embedding,):
        raise StateInvalidError(
            f"state: user_embedding must hold {surface.state.user_embedding} numbers, "
            f"got shape {list(embedding.shape)}"
        )
    return embedding


def _history(spec: HistorySpec, state: Mapping[str, Any]) -> StateTensors:
    history = state.get("history")
    if history is None:
        raise StateIncompleteError("state: history is missing; send empty lists for a new user")
    if not isinstance(history, Mapping):
        raise StateInvalidError("state: history must be an object with embedding, action and age_s")
    columns = {}
    for name in ("embedding", "action", "age_s"):
        if history.get(name) is None:
            raise StateIncompleteError(f"state: history.{name} is missing")
        if not hasattr(history[name], "__len__") or isinstance(history[name], (str, bytes, Mapping)):
            raise StateInvalidError(f"state: history.{name} must be a list")
        columns[name] = history[name]
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise StateInvalidError("state: history.embedding, .action and .age_s must have equal lengths")
    embedding = np.zeros((spec.length, spec.embedding), dtype=np.float32)
    action = np.zeros(spec.length, dtype=np.int64)
    age_s = np.zeros(spec.length, dtype=np.float32)
    codes = action_codes(spec)
    try:
        known = [(i, codes[name]) for i, name in enumerate(columns["action"]) if name in codes]
    except TypeError as error:
        raise StateInvalidError("state: history.action must hold strings") from error
    newest = known[-spec.length :]
    if newest:
        rows = [i for i, _ in newest]
        values = _floats([columns["embedding"][i] for i in rows], "history.embedding")
        if values.shape != (len(rows), spec.embedding):
            raise StateInvalidError(
                f"state: each history embedding must hold {spec.embedding} numbers, "
                f"got shape {list(values.shape[1:])}"
            )
        ages = _floats([columns["age_s"][i] for i in rows], "history.age_s")
        if ages.shape != (len(rows),):
            raise StateInvalidError("state: history.age_s must be a flat list of numbers")
        embedding[: len(rows)] = values
        action[: len(rows)] = [code for _, code in newest]
        # A clock that runs ahead gives small negative ages; they mean "just now".
        age_s[: len(rows)] = np.maximum(ages, 0.0)
    return {"history_embedding": embedding, "history_action": action, "history_age_s": age_s}


def _context(surface: Surface, state: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    context = state.get("context") or {}
    if not isinstance(context, Mapping):
        raise StateInvalidError("state: context must be an object of field: value")
    codes = np.zeros(len(surface.state.context), dtype=np.int64)
    for i, (name, words) in enumerate(surface.state.context.items()):
        value = context.get(name)
        if isinstance(value, str):
            codes[i] = context_codes(words).get(value, 0)
        elif value is not None:
            raise StateInvalidError(f"state: context.{name} must be a string, got {type(value).__name__}")
    return codes
