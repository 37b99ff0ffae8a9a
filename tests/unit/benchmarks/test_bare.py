"""The baseline of P3 answers what the sidecar answers, from the same two calls."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from benchmarks.sidecar.bare import BareApplication
from serve.fakes import ascending_scores
from tests.unit.serve.asgi import AsgiClient
from tests.unit.serve.support import SURFACE, body, rig


class Answered:
    def __init__(self, array: Any) -> None:
        self._array = array

    def as_numpy(self, name: str) -> Any:
        return self._array


class FakeTriton:
    """tritonclient's ``infer``, as far as the application uses it."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.inputs: list[str] = []

    async def infer(self, model: str, inputs: list[Any], outputs: list[Any]) -> Answered:
        self.inputs = [tensor.name() for tensor in inputs]
        return Answered(self._answer)


def test_the_baseline_ranks_as_the_sidecar_does() -> None:
    async def main() -> None:
        application = BareApplication(SURFACE, triton="unused:1", ranker="unused:2")
        value = FakeTriton(SURFACE.actions[4][np.newaxis].astype(np.float32))
        ranker = FakeTriton(ascending_scores(range(10), 4)[np.newaxis])
        application._clients = (value, ranker)
        answer = (await AsgiClient(application).post("/v1/rank", body())).json()
        async with rig() as r:
            expected = await r.rank()
        assert {name: expected[name] for name in ("items", "scores", "source")} == answer
        assert value.inputs[-1] == "scalarization"
        assert ranker.inputs == ["user_embedding", "context", "candidate_ids"]

    asyncio.run(main())


def test_without_the_control_it_makes_one_call_and_takes_production_weights() -> None:
    async def main() -> None:
        application = BareApplication(SURFACE, triton="unused:1", ranker="unused:2")
        value, ranker = FakeTriton(None), FakeTriton(ascending_scores(range(10), 4)[np.newaxis])
        application._clients = (value, ranker)
        answer = (await AsgiClient(application).post("/v1/rank", body(control=False))).json()
        async with rig() as r:
            expected = await r.rank(control=False)
        assert {name: expected[name] for name in ("items", "scores", "source")} == answer
        assert not value.inputs

    asyncio.run(main())
