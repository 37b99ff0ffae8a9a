"""Rubbish of a kind that NumPy or Python itself stumbles over is still rubbish, not a 500."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from serve.decide import ValueAnswer
from serve.fakes import FakeRankerClient, FakeValueClient
from tests.unit.serve.support import STATE, SURFACE, body, rig


@pytest.mark.parametrize(
    "value",
    [
        FakeValueClient(
            SURFACE, answer=ValueAnswer(weights_W=np.array(1.0), action=4, values_M=np.array(1.0))
        ),
        FakeValueClient(
            SURFACE,
            answer=ValueAnswer(weights_W=np.array([b"a", b"b"], dtype=object), action=4, values_M=np.ones(2)),
        ),
        FakeValueClient(
            SURFACE,
            answer=ValueAnswer(weights_W=np.ones(2), action=4, values_M=np.array([b"a", b"b"], dtype=object)),
        ),
        FakeValueClient(SURFACE, error=RuntimeError("a bug of a library")),
    ],
)
def test_the_value_network(value: FakeValueClient) -> None:
    async def main() -> None:
        async with rig(value=value) as r:
            answer = await r.rank()
            assert (answer["reason"], answer["source"]) == ("invalid_answer", "production")

    asyncio.run(main())


@pytest.mark.parametrize(
    "ranker",
    [
        FakeRankerClient(4, scores=lambda ids, heads: np.full((len(ids), heads), 1e307)),
        FakeRankerClient(4, error=RuntimeError("a bug of a library")),
    ],
)
def test_the_ranker(ranker: FakeRankerClient) -> None:
    async def main() -> None:
        async with rig(ranker=ranker) as r:
            answer = await r.client.post("/v1/rank", body())
            assert (answer.status, answer.json()["error"]["type"]) == (503, "ranker_invalid_answer")

    asyncio.run(main())


@pytest.mark.parametrize("field", ["k", "user_id", "request_id", "cohort", "control", "candidates"])
def test_a_deeply_nested_field(field: str) -> None:
    async def main() -> None:
        async with rig() as r:
            for depth in (900, 980, 1000, 1015, 1020, 1023, 1100):
                nested = "[" * depth + "]" * depth
                rest = "" if field == "candidates" else '"candidates":[1,2],'
                data: Any = f'{{{rest}"{field}":{nested}}}'.encode()
                answer = await r.client.post("/v1/rank", data)
                assert answer.status in (400, 422), (depth, answer.body)
            assert (await r.client.post("/v1/weights", {"state": STATE})).status == 200

    asyncio.run(main())
