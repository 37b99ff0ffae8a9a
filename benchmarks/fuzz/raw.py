"""Cases below any description: mutated bodies, odd headers and methods, broken HTTP, garbage on the port.

Each case is bytes on a connection of its own. The answer must be HTTP; no 5xx but a listed one; an error in
JSON has the one shape of all errors; and whatever came before, the application is alive afterwards.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from benchmarks.fuzz.tally import Tally
from benchmarks.fuzz.tensors import TensorBodies, described_tensors
from serve.tensor_body import LENGTH_HEADER, MEDIA_TYPE

Route = tuple[str, str]
"""Method and path."""

TIMEOUT_S = 10.0
IMPATIENT_S = 0.05
"""How long is waited for an answer to half a request before the caller hangs up."""

NUMBERS = ["1e999", "-1e999", "NaN", "Infinity", "1e-400", "9" * 400, "-0", "0.1e+5", "00", "1_0", "0x10"]
STRINGS = ['"\\ud800"', '"\\u0000"', '"' + "x" * 5000 + '"', '""', '"\\"', "'a'", "\ufeff1", "nul", "trueish"]
TYPES = [
    *("application/json", "application/json; charset=utf-16", "text/plain", "", "application/octet-stream"),
    *(
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "*/*",
        "a" * 300,
        "é",
        "a/b;;=\x01",
    ),
]
NAMES = [
    "traceparent",
    "tracestate",
    "x-request-id",
    "accept",
    "content-encoding",
    "expect",
    "cookie",
    "host",
]
NAMES += ["authorization", "range", "if-none-match", "upgrade", "connection", "x-http-method-override"]
METHODS = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "post", "P\tOST"]
PATHS = ["/", "//", "/v1", "/v1/rank/", "/v1/%72ank", "/v1/rank?x=%00", "/../etc/passwd", "/v1/rank#a", "*"]
PATHS += ["/%ff%fe", "/" + "a" * 8000, "/v1/rank;x=1", "/metrics/../healthz", "http://elsewhere/"]

ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    -(2**70),
    1.5,
    1e308,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
]


class Raw:
    """Makes cases from a seed, and judges what comes back."""

    def __init__(self, address: str, tally: Tally, description: dict[str, Any], example: Any) -> None:
        parts = urlsplit(address)
        self._peer = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._tally = tally
        self._random = random.Random(tally.seed)
        self._example = example
        self._listed = {
            (method.upper(), path): {int(status) for status in operation["responses"] if status.isdigit()}
            for path, operations in description["paths"].items()
            for method, operation in operations.items()
        }
        self._tensors = [
            (route, TensorBodies(schema))
            for route in self._listed
            if (schema := described_tensors(description, route[1])) and route[0] == "POST"
        ]
        self._bodies = [route for route in self._listed if route[0] in ("POST", "PUT", "PATCH")]

    def run(self, cases: int) -> None:
        """Run so many cases, and see that the application is alive."""
        makers: list[tuple[str, Callable[[], None], float]] = [
            ("raw: body", self._body_case, 0.45),
            ("raw: tensors", self._tensor_case, 0.15),
            ("raw: headers", self._header_case, 0.2),
            ("raw: method and path", self._path_case, 0.12),
            ("raw: broken HTTP", self._broken_case, 0.08),
        ]
        for kind, maker, share in makers:
            self._kind = kind
            if maker == self._tensor_case and not self._tensors:
                continue  # an older sidecar than this fuzzer
            for _ in range(max(1, round(cases * share))):
                maker()
        if (
            self._exchange(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")[:12]
            != b"HTTP/1.1 200"
        ):
            self._tally.find("the application is dead afterwards")

    # ------------------------------------------------------------------ cases

    def _body_case(self) -> None:
        route = self._random.choice(self._bodies)
        kind = self._random.choice(TYPES) if self._random.random() < 0.2 else "application/json"
        self._ask(route, self._mutated(), [("content-type", kind)])

    def _tensor_case(self) -> None:
        route, bodies = self._random.choice(self._tensors)
        body, length = bodies.spoilt(self._random)
        headers = [("content-type", MEDIA_TYPE), (LENGTH_HEADER, length)]
        self._ask(route, body, [*headers, ("accept", self._random.choice([MEDIA_TYPE, "*/*"]))])

    def _header_case(self) -> None:
        route = self._random.choice(list(self._listed))
        body = json.dumps(self._example).encode() if route in self._bodies else b""
        headers = [(self._random.choice(NAMES), self._odd()) for _ in range(self._random.randint(1, 4))]
        self._ask(route, body, [("content-type", "application/json"), *headers])

    def _path_case(self) -> None:
        choose = self._random.choice
        path = choose([*PATHS, *(path for _, path in self._listed)])
        self._ask((choose(METHODS), path), b"", [])

    def _broken_case(self) -> None:
        body = json.dumps(self._example).encode()
        head = "POST /v1/rank HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        broken = [
            self._random.randbytes(self._random.randint(1, 400)),
            f"{head}content-length: {len(body) + 50}\r\n\r\n".encode() + body,
            f"{head}content-length: -1\r\n\r\n".encode() + body,
            f"{head}content-length: 3\r\ncontent-length: 5\r\n\r\n".encode() + body,
            f"{head}transfer-encoding: chunked\r\n\r\nzz\r\n".encode() + body,
            f"{head}transfer-encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n",
            f"{head}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n".encode(),
            b"GET / HTTP/9.9\r\n\r\n",
            b"\r\n\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
        whole = self._random.choice(broken)
        answer = self._exchange(whole, patience_s=IMPATIENT_S)
        self._judge(None, whole, answer)

    def _mutated(self) -> bytes:
        pick = self._random
        data = json.dumps(self._spoilt(self._example) if pick.random() < 0.6 else self._example)
        if pick.random() < 0.3:
            data = data.replace(
                pick.choice(["1", "0.", '"', "[", "null", ":"]), pick.choice(NUMBERS + STRINGS), 1
            )
        body = bytearray(data.encode("utf-8", "surrogatepass"))
        for _ in range(pick.choice([0, 0, 0, 0, 0, 1, 2, 8])):
            at = pick.randrange(len(body)) if body else 0
            change = pick.randrange(4)
            if change == 0:
                body[at : at + 1] = pick.randbytes(1)
            elif change == 1:
                del body[at : at + pick.randint(1, 40)]
            elif change == 2:
                body[at:at] = pick.randbytes(pick.randint(1, 8))
            else:
                body[at:at] = pick.choice(
                    [b"[" * 2000, b'{"a":' * 300, b"\x00", b"\xff\xfe", b",,", b" " * 70_000]
                )
        return bytes(body)

    def _spoilt(self, value: Any) -> Any:
        """The example with one thing in it replaced, removed or doubled, at any depth."""
        pick = self._random
        if isinstance(value, dict) and value and pick.random() < 0.85:
            key = pick.choice(list(value))
            if pick.random() < 0.15:
                return {k: v for k, v in value.items() if k != key}
            if pick.random() < 0.1:
                return {**value, pick.choice(["", "__proto__", "é" * 40, key + " "]): value[key]}
            return {**value, key: self._spoilt(value[key])}
        if isinstance(value, list) and value and pick.random() < 0.7:
            at = pick.randrange(len(value))
            return [*value[:at], self._spoilt(value[at]), *value[at + 1 :]]
        wrapped = [[None], [value, value], {"a": value}, str(value)[:50], [1] * 50, "y" * 300]
        return pick.choice([*ODD_VALUES, *wrapped])

    def _odd(self) -> str:
        pick = self._random
        alphabet = pick.choice(["0123456789abcdef-", " \t,;=\"'", "\x01\x7f\xff", "az09"])
        text = "".join(pick.choice(alphabet) for _ in range(pick.choice([0, 1, 20, 55, 300])))
        return pick.choice(
            [text, f"00-{text[:32]}-{text[:16]}-01", "chunked", "gzip", "100-continue", "x" * 20_000]
        )

    # ------------------------------------------------------------------ answers

    def _ask(self, route: Route, body: bytes, headers: list[tuple[str, str]]) -> None:
        method, path = route
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "connection: close"]
        lines.append(f"content-length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in headers]
        whole = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body
        self._judge(route, whole, self._exchange(whole))

    def _exchange(self, data: bytes, patience_s: float = TIMEOUT_S) -> bytes:
        answer = b""
        try:
            with socket.create_connection(self._peer, timeout=TIMEOUT_S) as connection:
                connection.settimeout(patience_s)
                connection.sendall(data)
                while part := connection.recv(65536):
                    answer += part
        except TimeoutError:
            return answer or b"timeout"
        except OSError:
            pass  # hung up on: what had come before counts
        return answer

    def _judge(self, route: Route | None, sent: bytes, answer: bytes) -> None:
        if answer == b"timeout":
            self._tally.count(self._kind, "hung up")
            if route is not None:
                self._tally.find(f"{self._kind}: no answer within {TIMEOUT_S:g} s to {sent[:300]!r}")
            return
        if not answer:
            self._tally.count(self._kind, "closed")
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        if not head.startswith(b"HTTP/1.") or not words[1].isdigit():
            self._tally.find(f"{self._kind}: not HTTP: {answer[:100]!r} to {sent[:300]!r}")
            return
        status = int(words[1])
        self._tally.count(self._kind, status)
        listed = self._listed.get(route, set()) if route else set()
        if (status >= 500 and status not in listed) or status == 500:
            self._tally.find(f"{self._kind}: {status} {body[:300]!r} to {sent[:2000]!r}")
        if b"application/json" in head and status >= 400 and status != 503 and body and not _is_error(body):
            self._tally.find(f"{self._kind}: {status} in another shape: {body[:300]!r} to {sent[:300]!r}")


def _is_error(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
        return isinstance(error["type"], str) and "Traceback" not in error["message"]
    except (ValueError, KeyError, TypeError):
        return False
