"""What surrounds a request: ids, headers, slow bodies."""

from __future__ import annotations

import asyncio
from typing import Any

from serve.schema import ErrorAnswer
from tests.unit.serve.support import body, config, rig

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_ids_and_trace_go_through_and_come_back() -> None:
    async def main() -> None:
        async with rig() as r:
            headers = {"traceparent": PARENT, "tracestate": "a=1", "x-request-id": "from-the-header"}
            answer = await r.client.post("/v1/rank", body(), headers)
            assert answer.json()["request_id"] == answer.headers["x-request-id"] == "from-the-header"
            assert answer.headers["traceparent"] == PARENT
            assert answer.headers["x-content-type-options"] == "nosniff"
            passed_on = {"traceparent": PARENT, "tracestate": "a=1"}
            assert r.value.calls[-1][2] == r.ranker.calls[-1][2] == passed_on
            # The body's own id wins; one that is no header value stays in the body.
            answer = await r.client.post("/v1/rank", body(request_id="b-1"), headers)
            assert answer.json()["request_id"] == answer.headers["x-request-id"] == "b-1"
            answer = await r.client.post("/v1/rank", body(request_id="ü\r\nx: y"), headers)
            assert answer.json()["request_id"] == "ü\r\nx: y"
            assert answer.headers["x-request-id"] == "from-the-header"
            # Refusals have them too, and a rubbish id is replaced.
            answer = await r.client.post("/v1/rank", b"{", {"x-request-id": "a b", "traceparent": "x"})
            assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"] != "a b"
            assert "traceparent" not in answer.headers

    asyncio.run(main())


def test_too_many_headers_are_refused() -> None:
    async def main() -> None:
        async with rig(config(limits={"header_bytes": 2000})) as r:
            answer = await r.client.post("/v1/rank", body(), {f"x-{i}": "y" * 50 for i in range(50)})
            assert answer.status == 431
            assert ErrorAnswer.model_validate_json(answer.body).error.type == "too_large"
            assert answer.headers["connection"] == "close"
            assert r.ranker.calls == []

    asyncio.run(main())


def test_a_body_that_trickles_is_given_up() -> None:
    async def main() -> None:
        async with rig(config(limits={"body_timeout_s": 0.05})) as r:
            sent: list[Any] = []

            async def receive() -> Any:
                await asyncio.sleep(0.01)
                return {"type": "http.request", "body": b" ", "more_body": True}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/rank", "headers": [], "query_string": b""}
            await asyncio.wait_for(r.client.app(scope, receive, send), timeout=5)
            assert sent[0]["status"] == 408
            assert (b"connection", b"close") in sent[0]["headers"]
            assert (
                'puts_requests_total{route="rank",status="408"} 1.0'
                in (await r.client.get("/metrics")).body.decode()
            )

    asyncio.run(main())


def test_what_was_asked_for_is_not_echoed() -> None:
    async def main() -> None:
        async with rig() as r:
            answer = await r.client.get("/<script>alert(1)</script>")
            assert (answer.status, b"script" in answer.body) == (404, False)
            assert (await r.client.get("/v1/rank")).headers["allow"] == "POST"
            for path in ("/docs", "/redoc", "/v1/rank/"):
                assert (await r.client.get(path)).status == 404

    asyncio.run(main())
