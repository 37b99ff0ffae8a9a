"""HTTP towards the model servers: what is sent is tritonclient's own, and what comes back, whatever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton_http
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.config import ClientTlsConfig, RankerConfig, ValueNetworkConfig
from serve.http_wire import HttpTemplate, HttpWire, Response, read_answer
from serve.wire import DTYPES, InputSpec
from tests.support.wires import described_inputs, http_answer, http_body
from triton_models.errors import (
    ConfigurationError,
    UpstreamInvalidError,
    UpstreamRefusedError,
    UpstreamUnavailableError,
)

KINDS = sorted(DTYPES)
NUMBER = np.array([[7.0]], dtype=np.float32)


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 9), max_size=3)), max_size=5),
    st.lists(st.text(max_size=20), max_size=20),
)
def test_a_request_is_the_one_that_tritonclient_makes(
    tensors: list[tuple[str, list[int]]], words: list[str]
) -> None:
    specs, contents, inputs = described_inputs(triton_http, tensors, words)
    wanted = [triton_http.InferRequestedOutput("y", binary_data=True)]
    theirs, size = triton_http.InferenceServerClient.generate_request_body(inputs, outputs=wanted)
    head, _, body = HttpTemplate(specs, ["y"]).filled(contents).partition(b"\r\n\r\n")
    lines = dict(line.split(b": ") for line in head.split(b"\r\n"))
    json_size = int(lines[b"Inference-Header-Content-Length"])
    assert int(lines[b"Content-Length"]) == len(body)
    size = size or len(theirs)  # tritonclient says None where no tensor has a byte
    assert body[json_size:] == theirs[size:]
    mine, other = orjson.loads(body[:json_size]), orjson.loads(theirs[:size])
    assert mine == other


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 9), max_size=3)), max_size=4),
    st.integers(0, 2**32),
)
def test_an_answer_is_read_as_it_was_written(tensors: list[tuple[str, list[int]]], seed: int) -> None:
    rng, outputs, expected, raw = np.random.default_rng(seed), [], {}, b""
    for number, (datatype, shape) in enumerate(tensors):
        content = rng.bytes(int(np.prod(shape)) * np.dtype(DTYPES[datatype]).itemsize)
        described = {"name": f"y{number}", "datatype": datatype, "shape": shape}
        outputs.append({**described, "parameters": {"binary_data_size": len(content)}})
        expected[f"y{number}"] = (datatype, tuple(shape), content)
        raw += content
    json = orjson.dumps({"model_name": "m", "model_version": "3", "outputs": outputs})
    assert read_answer(Response(200, len(json), json + raw)) == ("3", expected)
    for spoilt in (json + raw + b"x", (json + raw)[:-1]):
        with pytest.raises((ValueError, KeyError)):
            read_answer(Response(200, len(json), spoilt))


# ---------------------------------------------------------------------------------- over real connections


def good(array: Any = NUMBER, *, headers: str = "") -> bytes:
    return http_answer({"y": array}, headers=headers)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
    await reader.readexactly(int(lines.get("Content-Length", "0")))
    return head


class Server:
    """Answers the n-th request of all with the n-th of its answers; an empty one closes the connection."""

    def __init__(self, *answers: bytes, last_words: bool = False) -> None:
        self.answers, self.last_words = list(answers), last_words
        self.heads: list[bytes] = []
        self.connections = 0
        self.address = ""
        self._talks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._talks.append(asyncio.current_task())  # type: ignore[arg-type]
        try:
            while True:
                self.heads.append(await read_request(reader))
                answer = self.answers.pop(0)
                writer.write(answer)
                if not answer or self.last_words:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            await asyncio.sleep(0)


async def number(wire: HttpWire, headers: dict[str, str] | None = None) -> float:
    """Ask; an error becomes ours, as in a channel."""
    template = wire.template([InputSpec("x", "FP32", (1, 1))], ["y"])
    try:
        answer = await wire.infer(template.filled([[NUMBER]]), headers or {})
    except Exception as error:
        raise wire.mapped(error, "m") from error
    return float(np.frombuffer(answer.outputs["y"][2], np.float32)[0])


def with_server(*answers: bytes, last_words: bool = False, timeout_s: float = 5.0) -> Any:
    """Run an async test with a server and a wire to it."""

    def decorate(test: Callable[[Server, HttpWire], Awaitable[None]]) -> Callable[[], None]:
        async def main() -> None:
            async with Server(*answers, last_words=last_words) as server:
                wire = HttpWire(server.address, "m", timeout_s, None)
                await test(server, wire)
                await wire.close()

        def run() -> None:
            asyncio.run(main())

        run.__name__ = test.__name__  # type: ignore[attr-defined]
        return run

    return decorate


@with_server(good(), good(), good())
async def test_one_connection_serves_many_calls(server: Server, wire: HttpWire) -> None:
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    assert [await number(wire), await number(wire, trace), await number(wire)] == [7.0, 7.0, 7.0]
    assert server.connections == 1
    assert server.heads[0].startswith(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: 127.0.0.1:")
    assert [b"traceparent: 00-4bf9" in head for head in server.heads] == [False, True, False]


@with_server(*[good()] * 6)
async def test_calls_at_once_have_connections_of_their_own(server: Server, wire: HttpWire) -> None:
    assert await asyncio.gather(*(number(wire) for _ in range(3))) == [7.0] * 3
    assert await asyncio.gather(*(number(wire) for _ in range(3))) == [7.0] * 3
    assert server.connections == 3


def chunked() -> bytes:
    body, size = http_body({"y": NUMBER})
    head = f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {size}\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:9], body[9:]))
    return head.encode() + parts + b"0\r\n\r\n"


@with_server(b"HTTP/1.1 100 Continue\r\n\r\n" + good(), chunked(), good())
async def test_other_forms_of_the_same_answer(server: Server, wire: HttpWire) -> None:
    assert [await number(wire) for _ in range(3)] == [7.0] * 3
    assert server.connections == 1


@with_server(good(headers="Connection: close\r\n"), good())
async def test_a_connection_that_is_to_end_is_not_used_again(server: Server, wire: HttpWire) -> None:
    assert [await number(wire), await number(wire)] == [7.0, 7.0]
    assert server.connections == 2


@with_server(good(), good(), last_words=True)
async def test_a_connection_that_was_closed_meanwhile_costs_no_call(server: Server, wire: HttpWire) -> None:
    assert await number(wire) == 7.0
    await asyncio.sleep(0.05)
    assert await number(wire) == 7.0
    assert server.connections == 2


@with_server(good(), b"", good())
async def test_a_used_connection_that_ends_without_a_word_is_replaced(server: Server, wire: HttpWire) -> None:
    assert [await number(wire), await number(wire)] == [7.0, 7.0]
    assert (server.connections, len(server.heads)) == (2, 3)


@with_server(b"", good())
async def test_a_fresh_one_that_ends_without_a_word_is_a_failure(server: Server, wire: HttpWire) -> None:
    with pytest.raises(UpstreamUnavailableError, match="connection was lost"):
        await number(wire)
    assert len(server.heads) == 1
    assert await number(wire) == 7.0


@with_server(good(), good()[:60], good(), last_words=False, timeout_s=0.2)
async def test_half_an_answer_is_waited_for_and_not_asked_again(server: Server, wire: HttpWire) -> None:
    assert await number(wire) == 7.0
    with pytest.raises(UpstreamUnavailableError, match=r"no answer within 0\.2 s"):
        await number(wire)
    assert len(server.heads) == 2
    assert await number(wire) == 7.0
    assert server.connections == 2, "what comes late must not be taken for the next answer"


@with_server(good()[:60], last_words=True)
async def test_half_an_answer_and_the_end(server: Server, wire: HttpWire) -> None:
    with pytest.raises(UpstreamUnavailableError, match="inside an answer"):
        await number(wire)


@with_server(b"SSH-2.0-OpenSSH_9.2\r\n", good())
async def test_somebody_who_does_not_speak_http(server: Server, wire: HttpWire) -> None:
    with pytest.raises(UpstreamInvalidError, match="unreadable answer"):
        await number(wire)
    assert await number(wire) == 7.0
    assert server.connections == 2


@with_server(good() + good(np.array([[8.0]], dtype=np.float32)), good())
async def test_an_answer_too_many_is_nobodys(server: Server, wire: HttpWire) -> None:
    assert [await number(wire), await number(wire)] == [7.0, 7.0]
    assert server.connections == 2


def plain(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@with_server(
    plain("400 Bad Request", b'{"error":"scalarization: holds NaN"}'),
    plain("503 Service Unavailable", b'{"error":"busy"}'),
    plain("200 OK", b"{}"),
    good(),
)
async def test_errors(server: Server, wire: HttpWire) -> None:
    with pytest.raises(UpstreamRefusedError, match=r"400: .*holds NaN"):
        await number(wire)
    with pytest.raises(UpstreamUnavailableError, match=r"503: .*busy"):
        await number(wire)
    with pytest.raises(UpstreamInvalidError, match="asked over gRPC"):
        await number(wire)
    assert await number(wire) == 7.0
    assert server.connections == 1


@with_server(good(), good())
async def test_a_caller_that_gives_up_leaves_no_answer_behind(server: Server, wire: HttpWire) -> None:
    task = asyncio.create_task(number(wire))
    while not server.heads:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await number(wire) == 7.0
    assert server.connections == 2


@with_server()
async def test_closing_ends_what_is_under_way(server: Server, wire: HttpWire) -> None:
    server.answers = [b"HTTP/1.1 200"]
    task = asyncio.create_task(number(wire))
    while not server.heads:
        await asyncio.sleep(0.01)
    await wire.close()
    with pytest.raises(UpstreamUnavailableError):
        await task


def test_nobody_there() -> None:
    async def main() -> None:
        async with Server() as server:
            address = server.address
        wire = HttpWire(address, "m", 5.0, None)
        with pytest.raises(UpstreamUnavailableError):
            await number(wire)
        assert not await wire.ready()
        await wire.close()

    asyncio.run(main())


# ---------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("address", ["http://h:8000", "https://h:8000", "h:8001"])
def test_addresses(address: str) -> None:
    assert ValueNetworkConfig(addresses=(address,)).addresses == (address,)
    assert RankerConfig(addresses=(address,)).addresses == (address,)


@pytest.mark.parametrize("address", ["http://h", "ftp://h:1", "http://h:8000/v2", "http:h:1/", "h"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValidationError):
        ValueNetworkConfig(addresses=(address,))


@pytest.mark.parametrize("config", [ValueNetworkConfig, RankerConfig])
def test_tls_is_not_silently_left_out(config: Any) -> None:
    with pytest.raises(ValidationError, match="say https://"):
        config(addresses=("http://h:8000",), tls=ClientTlsConfig())


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    for name in ("absent.pem", "bad.pem"):
        tls = ClientTlsConfig(root_certificates=str(tmp_path / name))
        with pytest.raises(ConfigurationError, match="tls: cannot read"):
            HttpWire("https://127.0.0.1:1", "m", 5.0, tls)
