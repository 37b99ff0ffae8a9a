"""What ``/openapi.json`` says of bodies that are parsed by hand: exact for this surface and these limits.

A body that this description allows is answered with 200 (the fuzzer holds us to it). The reverse is not
promised for ``state``: what is wrong with it is a fallback wherever the ranker can do without, not an error.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serve.clients import ranker_state_inputs
from serve.config import SidecarConfig
from serve.requests import DEFAULT_K, MAX_CANDIDATE_NAME

FLOAT32_MAX = 3.4e38
LARGEST_INTEGER = 2**63 - 1024
"""The largest int64 that JSON tools which read numbers as doubles do not round up beyond int64."""

Schema = dict[str, Any]


def request_body(model: type[BaseModel], config: SidecarConfig) -> dict[str, Any]:
    """``openapi_extra`` of a serving route whose body is ``model``."""
    body = plain_schema(model)
    properties = body["properties"]
    ranks = "candidates" in properties
    state = _state(config, needed=_needed_of_state(config) if ranks else [])
    properties["state"] = {"anyOf": [state, {"type": "null"}], "title": "State"}
    if ranks:
        properties["candidates"] = _candidates(config)
        most = config.limits.k
        properties["k"] |= {"maximum": most, "default": min(DEFAULT_K, most)}
        if state["required"]:
            properties["state"] = state
            body["required"] = [*body.get("required", ()), "state"]
    return json_body(body)


def json_body(schema: Schema) -> Schema:
    """``openapi_extra`` of a route whose body is JSON."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def plain_schema(model: type[BaseModel]) -> Schema:
    """A model's schema without references."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    body: Schema = _inlined(schema, definitions)
    return body


def _needed_of_state(config: SidecarConfig) -> list[str]:
    """The parts of the state without which there is no ranking."""
    if config.ranker is None:
        return []
    inputs = set(ranker_state_inputs(config.surface, config.ranker))
    history = any(name.startswith("history_") for name in inputs)
    # Whatever the ranker needs is encoded together with the user's embedding.
    return (["user_embedding"] if inputs else []) + (["history"] if history else [])


def _numbers(length: int) -> Schema:
    number = {"type": "number", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}
    return {"type": "array", "items": number, "minItems": length, "maxItems": length}


def _state(config: SidecarConfig, *, needed: list[str]) -> Schema:
    spec = config.surface.state
    properties: Schema = {"user_embedding": _numbers(spec.user_embedding)}
    if spec.history is not None:
        most = config.limits.history
        columns = {
            "embedding": _numbers(spec.history.embedding),
            "action": {"type": "string", "description": f"known: {', '.join(spec.history.actions)}"},
            "age_s": {"type": "number", "minimum": 0, "maximum": FLOAT32_MAX},
        }
        properties["history"] = {
            "type": "object",
            "description": f"newest last, three lists of one length; the newest {spec.history.length} count",
            "required": list(columns),
            "properties": {
                name: {"type": "array", "items": items, "maxItems": most} for name, items in columns.items()
            },
        }
    if spec.context:
        properties["context"] = {
            "type": "object",
            "properties": {
                name: {"type": ["string", "null"], "description": f"known: {', '.join(words)}"}
                for name, words in spec.context.items()
            },
        }
    return {
        "type": "object",
        "description": "What the request knows before any candidate is scored",
        "required": needed,
        "properties": properties,
    }


def _candidates(config: SidecarConfig) -> Schema:
    integers = config.ranker is None or config.ranker.candidates_type == "INT64"
    item: Schema = (
        {"type": "integer", "minimum": -LARGEST_INTEGER, "maximum": LARGEST_INTEGER}
        if integers
        else {"type": "string", "maxLength": MAX_CANDIDATE_NAME}
    )
    return {
        "type": "array",
        "items": item,
        "minItems": 1,
        "maxItems": config.limits.candidates,
        "uniqueItems": True,
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Definitions in place of references: a body outside FastAPI's models has no components."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
