"""Lines of log: their fields, their number, and what is never in them."""

from __future__ import annotations

import asyncio
import json
import logging
import queue
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.api import create_app
from serve.config import SidecarConfig
from serve.context import CURRENT, RequestContext
from serve.fakes import FakeRankerClient, FakeValueClient
from serve.logs import LogConfig, RateFilter, Redactor, configure_logs, line_handler
from serve.secrets import READ, read_secret
from serve.sidecar import Sidecar
from tests.unit.serve.support import SURFACE, body, config, rig
from triton_models.errors import UpstreamUnavailableError

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


class Lines:
    def __init__(self, **settings: Any) -> None:
        self.queue: queue.Queue[logging.LogRecord] = queue.Queue(1000)
        self.handler = line_handler(LogConfig(**settings), ['s3cr"et-token'], self.queue)

    def taken(self) -> list[str]:
        lines = []
        while not self.queue.empty():
            lines.append(self.queue.get().getMessage())
        return lines


@pytest.fixture
def attached() -> Iterator[Any]:
    root, made = logging.getLogger(), []

    def attach(**settings: Any) -> Lines:
        lines = Lines(**settings)
        root.addHandler(lines.handler)
        made.append(lines.handler)
        return lines

    yield attach
    for handler in made:
        root.removeHandler(handler)


def test_a_line_says_whose_request_it_is_about(attached: Any) -> None:
    lines = attached()
    value = FakeValueClient(SURFACE, error=UpstreamUnavailableError("nobody there"))

    async def main() -> None:
        async with rig(value=value) as r:
            headers = {"traceparent": PARENT}
            answer = await r.client.post("/v1/rank", body(request_id="r-1", user_id="user-77"), headers)
            assert answer.status == 200

    asyncio.run(main())
    found = [json.loads(line) for line in lines.taken() if "production weights instead" in line]
    assert len(found) == 1
    line = found[0]
    assert (line["level"], line["logger"]) == ("WARNING", "serve.api")
    assert (line["request_id"], line["trace_id"], line["reason"]) == ("r-1", TRACE_ID, "unavailable")
    assert line["policy_version"] == 0
    assert line["arm"]
    assert {"timestamp", "message"} <= line.keys()


def test_a_storm_is_a_few_lines(attached: Any) -> None:
    lines = attached(burst=3, lines_per_s=0.001)
    value = FakeValueClient(SURFACE, error=UpstreamUnavailableError("nobody there"))

    async def main() -> None:
        async with rig(config(value_network={"retry_s": 60}), value=value) as r:
            for _ in range(50):
                await r.rank()

    asyncio.run(main())
    found = [json.loads(line) for line in lines.taken() if "production weights instead" in line]
    # Of each reason by itself: the first failures, then the open breaker.
    assert Counter(line["reason"] for line in found).most_common(1)[0][1] == 3
    assert 3 <= len(found) <= 6


def test_the_rate_of_one_kind_by_a_hand_moved_clock() -> None:
    now_s = 0.0
    rate = RateFilter(lines_per_s=2.0, burst=2, clock=lambda: now_s)

    def passes(text: str = "a %s") -> Any:
        record = logging.LogRecord("x", logging.WARNING, "f", 1, text, (1,), None)
        return getattr(record, "suppressed", 0) if rate.filter(record) else None

    assert [passes() for _ in range(4)] == [0, 0, None, None]
    assert passes("another kind") == 0
    now_s = 0.5  # half a second at two a second: one more, and the two that were cut are told
    assert [passes() for _ in range(2)] == [2, None]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("postgresql://puts:hunter22@db:5432/x failed", "hunter22"),
        ("{'operator_token': 'zzz999zzz'}", "zzz999zzz"),
        ("api_key=zzz999zzz&x=1", "zzz999zzz"),
        ('a configured one: s3cr"et-token', "s3cr"),
        ('a configured one in JSON: "s3cr\\"et-token"', "s3cr"),
    ],
)
def test_secrets_are_blotted_out(text: str, gone: str) -> None:
    line = Redactor(['s3cr"et-token'])(text)
    assert gone not in line
    assert "[redacted]" in line


def test_a_secret_that_was_read_is_blotted_out(attached: Any, tmp_path: Path) -> None:
    lines = attached()
    (tmp_path / "tokens").write_text("first-of-two\nanna:second-of-two\n")
    before = set(READ)
    try:
        read_secret(str(tmp_path / "tokens"), what="tokens")
        logging.getLogger("serve.test").error("%s and %s", "first-of-two", "second-of-two")
    finally:
        READ.intersection_update(before)
    assert "of-two" not in "".join(lines.taken())


def test_the_user_of_the_request_is_blotted_out_of_a_traceback(attached: Any) -> None:
    lines = attached(format="json"), attached(format="text")
    before = CURRENT.set(RequestContext("r", user_id="anna@example.org"))
    try:
        try:
            raise ValueError("cannot find anna@example.org")
        except ValueError:
            logging.getLogger("serve.test").exception("for %s", "anna@example.org")
    finally:
        CURRENT.reset(before)
    for some in lines:
        (line,) = some.taken()
        assert "Traceback" in line
        assert "anna" not in line


def test_no_caller_can_write_a_line_of_its_own(attached: Any) -> None:
    as_json, as_text = attached(format="json"), attached(format="text")
    before = CURRENT.set(RequestContext('x\n2026 ERROR forged: "line"\x1b[2J'))
    try:
        logging.getLogger("serve.test").warning("hello %s", "a\nb")
    finally:
        CURRENT.reset(before)
    for lines in (as_json, as_text):
        (line,) = lines.taken()
        assert line.isprintable()


def test_a_bug_is_a_500_with_an_id_and_nothing_of_the_inside(attached: Any) -> None:
    lines = attached()

    class Broken(Sidecar):
        async def rank(self, *_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("inside knowledge")

    def make(settings: SidecarConfig) -> Sidecar:
        fakes = FakeValueClient(SURFACE), FakeRankerClient(len(SURFACE.heads))
        return Broken(settings, value_clients=[fakes[0]], ranker_clients=[fakes[1]])

    async def main() -> None:
        from tests.unit.serve.asgi import running

        async with running(create_app(config(), make)) as client:
            answer = await client.post("/v1/rank", body(), {"x-request-id": "caller-5"})
            assert answer.status == 500
            assert answer.json()["error"]["type"] == "internal"
            assert answer.json()["error"]["request_id"] == "caller-5"
            assert answer.headers["x-request-id"] == "caller-5"
            assert b"inside" not in answer.body
            assert b"Zero" not in answer.body

    asyncio.run(main())
    (line,) = (json.loads(text) for text in lines.taken())
    assert line["request_id"] == "caller-5"
    assert "ZeroDivisionError: inside knowledge" in line["traceback"]


def test_written_by_a_thread_to_stderr_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    for handler in before:
        root.removeHandler(handler)
    try:
        end = configure_logs(LogConfig(folder=str(tmp_path / "logs")), secrets=["hush-hush"])
        logging.getLogger("anybody").error("it is %s", "hush-hush")
        end()
        end()
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
    (file,) = (tmp_path / "logs").iterdir()
    for text in (file.read_text(), capsys.readouterr().err):
        assert json.loads(text)["message"] == "it is [redacted]"
