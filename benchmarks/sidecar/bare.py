"""The baseline of P1 and P3: a bare uvicorn application that makes the sidecar's two calls, and nothing else.

``u(s,x;w) = Σ_i w_i h_i(s,x)`` with the weights of the value network (arXiv 2605.16344, Eq. 1), the top k
of it as JSON. What any such application must do is done, with the same code where the work is the same
(orjson, :func:`triton_models.encoding.encode_state`, uvicorn, tritonclient's asyncio client with one reused
channel per server). What makes the sidecar one is left out: no limits, no checks of the request or of the
answers, no budget, no breaker, no cap, no metrics, no log, no policy, no framework.

    python -m benchmarks.sidecar.bare --surface FILE --triton HOST:PORT --ranker HOST:PORT --port 8100

It takes the body of the sidecar's ``POST /v1/rank``, at any path, and answers ``items``, ``scores`` and
``source``. With ``"control": false`` it makes one call, the ranker's, and blends with production weights:
the difference is what a second call costs whoever makes it.

Shape legend: n candidates, H heads, k served.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tritonclient.grpc.aio as triton_grpc
import uvicorn

from triton_models.encoding import encode_state
from triton_models.surface import Surface, load_surface
from triton_models.tensors import VALUE_NETWORK, input_specs

VALUE_OUTPUTS = ("weights", "action", "values")
RANKER_INPUTS = ("user_embedding", "context")

HEADERS = [(b"content-type", b"application/json")]


class BareApplication:
    """An ASGI application. Its channels are opened at the first request, in the event loop."""

    def __init__(self, surface: Surface, *, triton: str, ranker: str, ranker_model: str = "ranker") -> None:
        self._surface = surface
        self._addresses = (triton, ranker)
        self._ranker_model = ranker_model
        self._specs = {spec.name: spec for spec in input_specs(surface)}
        self._scalarization_M = surface.scalarization([1.0] * len(surface.objectives)).astype(np.float32)
        self._fixed = [surface.fixed[head] for head in surface.heads if head in surface.fixed]
        self._clients: tuple[Any, Any] | None = None
        self._value_outputs = [triton_grpc.InferRequestedOutput(name) for name in VALUE_OUTPUTS]
        self._scores_output = [triton_grpc.InferRequestedOutput("scores")]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        # A GET without a body is somebody who waits for the start.
        answer = orjson.dumps(await self.rank(orjson.loads(body)) if body else {"alive": True})
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": answer})

    async def rank(self, request: dict[str, Any]) -> dict[str, Any]:
        """Two calls at the same time, or the ranker's alone; blend, cut."""
        tensors = encode_state(self._surface, request["state"])
        candidates, control = request["candidates"], request.get("control", True)
        if control:
            weights_W, scores_nH = await asyncio.gather(
                self._choose(tensors), self._score(tensors, candidates)
            )
        else:
            weights_W, scores_nH = self._surface.production, await self._score(tensors, candidates)
        weights_H = np.concatenate([weights_W, self._fixed])
        utility_n = scores_nH @ weights_H
        k = min(request.get("k", 25), len(candidates))
        best_k = np.argpartition(-utility_n, k - 1)[:k]
        best_k = best_k[np.argsort(-utility_n[best_k], kind="stable")]
        return {
            "items": [candidates[i] for i in best_k.tolist()],
            "scores": utility_n[best_k].tolist(),
            "source": "value_network" if control else "production",
        }

    def _open(self) -> tuple[Any, Any]:
        if self._clients is None:
            triton, ranker = (triton_grpc.InferenceServerClient(address) for address in self._addresses)
            self._clients = (triton, ranker)
        return self._clients

    def _tensor(self, name: str, value: Any) -> Any:
        spec = self._specs[name]
        array = np.ascontiguousarray(value, dtype=spec.dtype)[np.newaxis]
        return triton_grpc.InferInput(name, list(array.shape), spec.datatype).set_data_from_numpy(array)

    async def _choose(self, tensors: dict[str, Any]) -> Any:
        inputs = [self._tensor(name, value) for name, value in tensors.items()]
        inputs.append(self._tensor("scalarization", self._scalarization_M))
        result = await self._open()[0].infer(VALUE_NETWORK, inputs, outputs=self._value_outputs)
        return result.as_numpy("weights")[0]

    async def _score(self, tensors: dict[str, Any], candidates: list[int]) -> Any:
        inputs = [self._tensor(name, tensors[name]) for name in RANKER_INPUTS if name in tensors]
        ids = np.array([candidates], dtype=np.int64)
        ids_input = triton_grpc.InferInput("candidate_ids", list(ids.shape), "INT64")
        inputs.append(ids_input.set_data_from_numpy(ids))
        result = await self._open()[1].infer(self._ranker_model, inputs, outputs=self._scores_output)
        return result.as_numpy("scores")[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sidecar.bare", description=__doc__)
    parser.add_argument("--surface", type=Path, required=True, help="control surface (YAML)")
    parser.add_argument("--triton", required=True, metavar="HOST:PORT", help="gRPC of the value network")
    parser.add_argument("--ranker", required=True, metavar="HOST:PORT", help="gRPC of the ranker")
    parser.add_argument("--ranker-model", default="ranker")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    application = BareApplication(
        load_surface(options.surface),
        triton=options.triton,
        ranker=options.ranker,
        ranker_model=options.ranker_model,
    )
    uvicorn.run(application, host=options.host, port=options.port, log_level="warning", timeout_keep_alive=75)


if __name__ == "__main__":
    main()
