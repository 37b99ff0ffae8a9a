"""Logs of a sidecar process: one JSON object a line (or text), bounded, without secrets, off the event loop.

Any logger of the process → filters and formatter in the thread that logs (they need its context) → a bounded
queue → one thread that writes to stderr and, where a folder is set, to a rotating file. A full queue or a
slow disk loses lines, never time.

On a request's behalf a line carries ``request_id``, ``trace_id``, ``policy_version``, ``arm`` and ``reason``.
A storm of one kind of line is cut to ``lines_per_s``; the next one that passes says how many were
``suppressed``. Secrets that were read, bearer tokens, passwords in URLs and the request's user id are blotted
out of the finished line, tracebacks included.
"""

from __future__ import annotations

import atexit
import json
import logging
import logging.handlers
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pythonjsonlogger.orjson import OrjsonFormatter

from serve.context import CURRENT
from serve.secrets import READ

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

QUEUE_LINES = 1000
FILE_BYTES = 20 * 1024**2
FILES_KEPT = 3
MAX_KINDS = 1000
"""Kinds of line that are told apart; more than these are counted afresh."""
MIN_USER_ID = 4
"""Shorter user ids are words of any line ("1", "up"); a line is not made unreadable for them."""

CONTEXT_FIELDS = ("request_id", "trace_id", "policy_version", "arm", "reason")
BLOT = "[redacted]"

_TOKENS = re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=\-]{6,}")
_URL_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/@]+@")
_NAMED = re.compile(
    r"(?i)\b(authorization|password|passwd|secret|api_?key|\w*token)(\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\s\"'\\,}]+"
)


class LogConfig(BaseModel):
    """What is logged, how, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["json", "text"] = "json"
    level: Level = "WARNING"
    folder: str | None = None
    """Also write to ``sidecar-<pid>.log`` here, rotated at 20 MB, three old files kept. None: stderr only."""
    lines_per_s: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Of one kind of line (logger, message before its values are filled in, reason)."""
    burst: Annotated[int, Field(ge=1, le=1000)] = 5


class ContextFilter(logging.Filter):
    """Puts the request under way on the record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; lets everything pass."""
        context = CURRENT.get()
        for name in CONTEXT_FIELDS:
            if not hasattr(record, name):
                setattr(record, name, getattr(context, name, None))
        return True


class RateFilter(logging.Filter):
    """A token bucket for each kind of line: at most ``burst + lines_per_s · t`` of them in any t seconds."""

    def __init__(self, lines_per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines_per_s, self._burst, self._clock = lines_per_s, burst, clock
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str, object], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is written; the first one after a gap says how many were not."""
        kind = (record.name, str(record.msg)[:200], getattr(record, "reason", None))
        now_s = self._clock()
        with self._lock:
            if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
                self._kinds.clear()
            tokens, before_s, suppressed = self._kinds.get(kind, (float(self._burst), now_s, 0))
            tokens = min(float(self._burst), tokens + (now_s - before_s) * self._lines_per_s)
            passes = tokens >= 1.0
            self._kinds[kind] = (tokens - passes, now_s, 0 if passes else suppressed + 1)
        if passes and suppressed:
            record.suppressed = suppressed
        return passes


class Redactor:
    """Blots secrets out of a finished line."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._given = frozenset(secrets)

    def __call__(self, line: str) -> str:
        """The line without secrets and without the user id of the request under way."""
        for secret in sorted(self._given | READ, key=len, reverse=True):
            line = _without(line, secret)
        line = _TOKENS.sub(rf"\1 {BLOT}", line)
        line = _URL_PASSWORD.sub(rf"\1{BLOT}@", line)
        line = _NAMED.sub(rf"\1\2{BLOT}", line)
        context = CURRENT.get()
        if context is not None and context.user_id and len(context.user_id) >= MIN_USER_ID:
            line = _without(line, context.user_id)
        return line


def _without(line: str, secret: str) -> str:
    # With quotes or backslashes it looks different inside JSON.
    for form in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]} - {""}:
        line = line.replace(form, BLOT)
    return line


class JsonLine(OrjsonFormatter):
    """One JSON object a line."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__(
            ["levelname", "name", "message", *CONTEXT_FIELDS],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "traceback"},
            timestamp=True,
        )
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """The finished line."""
        return self._redact(super().format(record))


class TextLine(logging.Formatter):
    """A line for people; line breaks that a caller smuggled in are shown as such."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._redact = redact

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Message and what is known of the request, on one line."""
        fields = [(name, getattr(record, name, None)) for name in (*CONTEXT_FIELDS, "suppressed")]
        told = " ".join(f"{name}={value}" for name, value in fields if value is not None)
        line = super().formatMessage(record) + (f" [{told}]" if told else "")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)

    def format(self, record: logging.LogRecord) -> str:
        """The finished line, and the traceback's."""
        return self._redact(super().format(record))


class _QueueOrLose(logging.handlers.QueueHandler):
    """Hands finished lines to the writing thread; a full queue loses them."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


def line_handler(
    config: LogConfig, secrets: Iterable[str], lines: queue.Queue[logging.LogRecord]
) -> logging.Handler:
    """The handler that filters and formats in the logging thread, and puts the finished line on a queue."""
    handler = _QueueOrLose(lines)
    redact = Redactor(secrets)
    handler.setFormatter(JsonLine(redact) if config.format == "json" else TextLine(redact))
    handler.addFilter(ContextFilter())
    handler.addFilter(RateFilter(config.lines_per_s, config.burst))
    return handler


def configure_logs(config: LogConfig, *, secrets: Iterable[str] = ()) -> Callable[[], None]:
    """Take over the process's root logger; the function given back writes what is queued and ends it."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_LINES)
    sinks: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if config.folder is not None:
        Path(config.folder).mkdir(parents=True, exist_ok=True)
        path = Path(config.folder) / f"sidecar-{os.getpid()}.log"
        sinks.append(
            logging.handlers.RotatingFileHandler(
                path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, delay=True, encoding="utf-8"
            )
        )
    logging.basicConfig(level=config.level, handlers=[line_handler(config, secrets, lines)], force=True)
    listener = logging.handlers.QueueListener(lines, *sinks)
    listener.start()
    ended = threading.Event()

    def end() -> None:
        if not ended.is_set():
            ended.set()
            listener.stop()

    atexit.register(end)
    return end
