"""Locust's file for :mod:`benchmarks.load.plan`: one user that conducts the phases, open loop or closed.

Locust's own users are a closed loop: each waits for its answer before it asks again, and ``constant_pacing``
only shortens the pause after a slow answer. So here one :class:`FastHttpUser` with many connections starts
one greenlet per arrival, at the arrival's own time, and every latency counts from that time; Locust's
statistics are given the same figures. Arrival times are kept by a real thread, since the event loop's own
timers come in whole milliseconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.monkey
import orjson
from locust import FastHttpUser, constant, events, task
from locust.exception import StopUser

from benchmarks.load.checks import check_items, check_ranking
from benchmarks.load.plan import MAX_IN_FLIGHT, Phase, Plan, arrival_offsets
from benchmarks.load.records import NO_ANSWER, Recorder
from benchmarks.load.traffic import Prepared, as_tensors, numbered, read_traffic
from triton_models.files import write_json
from triton_models.surface import Surface

FOLDER = Path(os.environ["PUTS_LOAD_FOLDER"])
PLAN = Plan.from_dict(json.loads((FOLDER / "plan.json").read_text(encoding="utf-8")))
SURFACE = Surface.from_dict(PLAN.surface)
TRAFFIC = read_traffic(PLAN.traffic)

START_DELAY_S = 0.3
STOP_POLL_S = 0.1
DRAIN_S = 12.0
"""How long answers may still come after the last phase."""
MAX_WORDS = 400

clock = time.monotonic
real_sleep = gevent.monkey.get_original("time", "sleep")
start_thread = gevent.monkey.get_original("_thread", "start_new_thread")

recorder = Recorder()
sequence = count()
began = {"s": 0.0}


def save(**_: Any) -> None:
    """Everything that was seen, whatever ended the run."""
    recorder.records(began["s"]).save(FOLDER / "records.npz")


events.quitting.add_listener(save)  # type: ignore[no-untyped-call]


class Bell:
    """Rings in the event loop at given times: a thread sleeps until each and wakes the loop at once."""

    def __init__(self, times_s: list[float], ring: Callable[[int, float], None]) -> None:
        self._times = times_s
        self._ring = ring
        self._due: deque[tuple[int, float]] = deque()
        self.done = gevent.event.Event()
        self.stopped = False
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._awake)
        start_thread(self._sleep, ())

    def _sleep(self) -> None:
        for number, due_s in enumerate(self._times):
            pause = due_s - clock()
            if pause > 0:
                real_sleep(pause)
            if self.stopped:
                break
            self._due.append((number, due_s))
            self._wake.send()
        self._due.append((-1, 0.0))
        self._wake.send()

    def _awake(self) -> None:
        while self._due:
            number, due_s = self._due.popleft()
            if number < 0:
                self.done.set()
            else:
                self._ring(number, due_s)


class Conductor(FastHttpUser):
    """Runs the plan once."""

    fixed_count = 1
    wait_time = constant(0)
    concurrency = MAX_IN_FLIGHT
    max_retries = 0
    network_timeout = 10.0
    connection_timeout = 10.0

    @task
    def conduct(self) -> None:
        """All phases; then the end of the run."""
        sys.setswitchinterval(5e-4)
        self.under_way: set[gevent.Greenlet] = set()
        began["s"] = start_s = clock() + START_DELAY_S
        write_json(FOLDER / "began.json", {"began_s": start_s})
        for number, phase in enumerate(PLAN.phases):
            if self._stopped():
                break
            conductor = self._open if phase.rate_per_s is not None else self._closed
            conductor(number, phase, start_s)
            start_s += phase.seconds
        gevent.joinall(list(self.under_way), timeout=DRAIN_S)
        gevent.spawn(self.environment.runner.quit)
        raise StopUser

    @staticmethod
    def _stopped() -> bool:
        return (FOLDER / "stop").exists()

    def _open(self, number: int, phase: Phase, start_s: float) -> None:
        assert phase.rate_per_s is not None  # noqa: S101
        offsets = arrival_offsets(
            rate_per_s=phase.rate_per_s, seconds=phase.seconds, arrivals=PLAN.arrivals, seed=phase.seed
        )

        def ring(arrival: int, due_s: float) -> None:
            self._spawn(self._send, number, phase, due_s, body_of(phase, arrival))

        bell = Bell((start_s + offsets).tolist(), ring)
        while not bell.done.wait(STOP_POLL_S):
            if self._stopped():
                bell.stopped = True
                return
        gevent.sleep(max(0.0, start_s + phase.seconds - clock()))

    def _closed(self, number: int, phase: Phase, start_s: float) -> None:
        gevent.sleep(max(0.0, start_s - clock()))
        end_s = start_s + phase.seconds
        numbers = count()

        def caller() -> None:
            while clock() < end_s and not self._stopped():
                self._send(number, phase, clock(), body_of(phase, next(numbers)))

        callers = [self._spawn(caller) for _ in range(phase.in_flight or 1)]
        gevent.joinall(callers)

    def _spawn(self, function: Callable[..., None], *arguments: Any) -> gevent.Greenlet:
        greenlet = gevent.spawn(function, *arguments)
        self.under_way.add(greenlet)
        greenlet.link(self.under_way.discard)
        return greenlet

    def _send(self, number: int, phase: Phase, due_s: float, prepared: Prepared) -> None:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if phase.tracestate:
            headers |= {"traceparent": TRACEPARENT, "tracestate": phase.tracestate}
        # Locust's annotation leaves bytes out; geventhttpclient takes them as they are.
        data: Any = prepared.rank_on if phase.control else prepared.rank_off
        if phase.binary:
            data, length = tensors_of(prepared, phase.control)
            headers |= {"content-type": "application/octet-stream", LENGTH_HEADER: str(length)}
        counted = next(sequence)
        if phase.unique:
            data = numbered(data, counted)
        retries = 0
        while True:
            sent_s = clock()
            with self.client.post(
                f"{phase.url}/v1/rank", data=data, name=phase.name, headers=headers, catch_response=True
            ) as response:
                ended_s = clock()
                response.request_meta["response_time"] = (ended_s - due_s) * 1e3
                answer, problem = judge(response, prepared, phase)
                status = int(response.status_code or NO_ANSWER)
                if problem is None:
                    response.success()
                else:
                    response.failure(problem)
            if not worth_another(status, problem) or retries >= phase.retries:
                break
            retries += 1
        if problem is not None and len(recorder.codes) > MAX_WORDS:
            problem = "(further problems)"
        recorder.add(
            phase=number,
            number=counted,
            due_s=due_s,
            sent_s=sent_s,
            ended_s=ended_s,
            status=status,
            problem=recorder.code(problem),
            source=recorder.code(answer.get("source")),
            reason=recorder.code(answer.get("reason")),
            arm=recorder.code(answer.get("arm")),
            version=int(answer.get("policy_version") or 0),
            retries=retries,
        )


LENGTH_HEADER = "inference-header-content-length"


@cache
def _tensors(line: bytes, control: bool) -> tuple[bytes, int]:
    return as_tensors(line, SURFACE, control=control)


def tensors_of(prepared: Prepared, control: bool) -> tuple[bytes, int]:
    """The binary form of a body, made once: only its bytes are sent again."""
    return _tensors(prepared.line, control)


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def worth_another(status: int, problem: str | None) -> bool:
    """Whether a gateway would ask another replica: the connection broke, or the proxy says 5xx for one.

    Never after a 503 of the sidecar's own, which carries a reason: the ranker's failure is the answer.
    """
    return status == NO_ANSWER or (status >= 500 and problem is not None and "not JSON" in problem)


def body_of(phase: Phase, arrival: int) -> Prepared:
    """The body of an arrival: the same in phases of the same seed."""
    return TRAFFIC[(phase.seed * 104_729 + arrival) % len(TRAFFIC)]


def judge(response: Any, prepared: Prepared, phase: Phase) -> tuple[dict[str, Any], str | None]:
    """The answer, and what is wrong with it."""
    status = response.status_code or NO_ANSWER
    content = response.content or b""
    if status == NO_ANSWER:
        return {}, f"no answer: {type(getattr(response, 'error', None)).__name__}"
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}, f"status {status}, not JSON"
    if status != 200:
        error = answer.get("error") if isinstance(answer, dict) else None
        return {}, f"{status} {error.get('type') if isinstance(error, dict) else 'error'}"
    if phase.bare:
        return answer, check_items(answer, prepared)
    return answer, check_ranking(answer, SURFACE, prepared, control=phase.control)
