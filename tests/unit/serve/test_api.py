"""Bad requests: one clear line, the right status, never a 500."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.schema import ErrorAnswer, RankAnswer, RankBody, WeightsAnswer, WeightsBody
from tests.unit.serve.support import HISTORY, STATE, body, config, rig


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b'{"state": NaN}', 400, "JSON"),
        (b"\xff\xfe", 400, "JSON"),
        (b"[" * 5000, 400, "JSON"),
        (body(surprise=1), 422, "surprise"),
        (body(candidates=[]), 422, "candidates"),
        (body(candidates=None), 422, "candidates"),
        (body(candidates="abc"), 422, "candidates"),
        (body(candidates=[1, 2, 1]), 422, "twice"),
        (body(candidates=[1.5]), 422, "whole numbers"),
        (body(candidates=[True, 2]), 422, "whole numbers"),
        (body(candidates=[[1]]), 422, "whole numbers"),
        (body(candidates=["a"]), 422, "whole numbers"),
        (body(candidates=[2**63]), 422, "int64"),
        (body(candidates=list(range(21))), 413, "candidates"),
        (body(k=0), 422, "k"),
        (body(k=True), 422, "k"),
        (body(k="3"), 422, "k"),
        (body(k=11), 413, "k"),
        (body(control=1), 422, "control"),
        (body(user_id=7), 422, "user_id"),
        (body(request_id="x" * 300), 422, "request_id"),
        (body(state=[1]), 422, "state"),
        (body(state={**STATE, "history": {**HISTORY, "action": ["save"] * 31}}), 413, "history"),
        (body(user_id="x", state={"user_embedding": [0.0] * 60_000}), 413, "body"),
    ],
)
def test_bad_requests(data: Any, status: int, word: str) -> None:
    async def main() -> None:
        limits = {"candidates": 20, "k": 10, "history": 30, "body_bytes": 100_000}
        async with rig(config(limits=limits)) as r:
            answer = await r.client.post("/v1/rank", data)
            assert answer.status == status, answer.body
            message = ErrorAnswer.model_validate_json(answer.body).error.message
            assert word in message
            assert "\n" not in message
            assert r.ranker.calls == []

    asyncio.run(main())


def test_a_limit_below_the_default_k_is_the_default() -> None:
    async def main() -> None:
        async with rig(config(limits={"k": 2})) as r:
            data = body()
            del data["k"]
            assert len((await r.client.post("/v1/rank", data)).json()["items"]) == 2

    asyncio.run(main())


def test_candidates_of_a_ranker_with_string_ids() -> None:
    async def main() -> None:
        async with rig(config(ranker={"candidates_type": "BYTES"})) as r:
            answer = await r.rank(candidates=["a", "b", "ü"], k=2)
            assert answer["items"] == ["ü", "b"]
            assert (await r.client.post("/v1/rank", body(candidates=[1]))).status == 422

    asyncio.run(main())


def test_unknown_paths_and_methods_have_the_same_shape() -> None:
    async def main() -> None:
        async with rig() as r:
            for answer, status in (
                (await r.client.get("/nowhere"), 404),
                (await r.client.get("/v1/rank"), 405),
            ):
                assert answer.status == status
                assert ErrorAnswer.model_validate_json(answer.body).error.type == "http"

    asyncio.run(main())


def test_answers_and_bodies_are_as_openapi_says() -> None:
    async def main() -> None:
        async with rig() as r:
            RankBody.model_validate(body())
            WeightsBody.model_validate({"state": STATE})
            RankAnswer.model_validate_json((await r.client.post("/v1/rank", body())).body)
            RankAnswer.model_validate_json((await r.client.post("/v1/rank", body(control=False))).body)
            WeightsAnswer.model_validate_json((await r.client.post("/v1/weights", {"state": STATE})).body)
            described = json.loads((await r.client.get("/openapi.json")).body)
            schema = described["paths"]["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]
            assert set(schema["schema"]["properties"]) == set(RankBody.model_fields)
            assert (await r.client.get("/healthz")).json() == {"alive": True}

    asyncio.run(main())


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
STATES = st.fixed_dictionaries(
    {},
    optional={
        "user_embedding": ANY_JSON | st.just(STATE["user_embedding"]),
        "history": ANY_JSON
        | st.fixed_dictionaries({}, optional={"embedding": ANY_JSON, "action": ANY_JSON, "age_s": ANY_JSON}),
        "context": ANY_JSON,
    },
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "request_id": ANY_JSON,
        "user_id": ANY_JSON,
        "cohort": ANY_JSON,
        "state": STATES | ANY_JSON,
        "candidates": ANY_JSON | st.just([3, 1, 2]),
        "k": ANY_JSON | st.just(2),
        "control": ANY_JSON | st.just(True),
    },
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(BODIES | ANY_JSON, min_size=20, max_size=30))
def test_whatever_comes_nothing_breaks(bodies: list[Any]) -> None:
    async def main() -> None:
        async with rig() as r:
            for data in bodies:
                for path in ("/v1/rank", "/v1/weights"):
                    answer = await r.client.post(path, json.dumps(data).encode())
                    assert answer.status in (200, 400, 413, 422), (data, answer.body)

    asyncio.run(main())
