"""W3C trace context from a caller through the sidecar to the real tritonserver, which tells a collector."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve.api import create_app
from serve.config import SidecarConfig
from serve.sidecar import Sidecar
from tests.integration.serve.test_stack import request
from tests.unit.serve.asgi import running
from triton_models.server import EmbeddedServer
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP as release 2.51 sends it (JSON), on a loopback port."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), Receiver)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = json.loads(self.rfile.read(int(self.headers["content-length"])))
        for resource in data["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.server.spans += scope["spans"]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """No lines on the test's output."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_traced_request_is_traced_in_triton(
    collector: Collector, repositories: tuple[Path, Path], homefeed: Surface
) -> None:
    async def main(server: EmbeddedServer) -> None:
        config = SidecarConfig.from_dict(
            {
                "surface": homefeed.to_dict(),
                "value_network": {"addresses": [server.grpc_address], "budget_ms": 5000.0},
            }
        )
        app = create_app(config, Sidecar)
        async with running(app) as client:
            (link,) = app.state.sidecar.links.links
            while link.link != "verified":
                await asyncio.sleep(0.01)
            body = {"state": request(homefeed)["state"]}
            for headers in ({}, {"traceparent": f"00-{TRACE_ID}-{PARENT}-01"}, {}):
                answer = await client.post("/v1/weights", body, headers)
                assert answer.json()["source"] == "value_network", answer.body
            async with asyncio.timeout(30):
                while not any(span["traceId"].lower() == TRACE_ID for span in collector.spans):
                    await asyncio.sleep(0.05)

    with EmbeddedServer(repositories[0], otlp_url=collector.url) as server:
        asyncio.run(main(server))
    ours = [span for span in collector.spans if span["traceId"].lower() == TRACE_ID]
    attributes = [
        {item["key"]: item["value"].get("stringValue") for item in span.get("attributes", [])}
        for span in ours
    ]
    assert VALUE_NETWORK in [found.get("triton.model_name") for found in attributes], attributes
    (root,) = [span for span in ours if span["name"] == "InferRequest"]
    assert root["parentSpanId"] == PARENT
    assert ours == collector.spans, "only requests that carry a trace context are traced"
