"""Locust users of the sidecar. Started by ``python -m benchmarks locust``, which sets ``PUTS_LOAD_PLAN``.

Mostly rankings, each twice in a row with the control on and off, in alternating order; some requests for
weights only. Every answer is checked.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import gevent
import orjson
from locust import FastHttpUser, constant, events, task

from benchmarks.load.checks import check_ranking, check_weights
from benchmarks.load.samples import Samples, summarize
from benchmarks.load.traffic import Prepared, numbered, read_traffic
from triton_models.files import write_json
from triton_models.surface import Surface

PLAN: dict[str, Any] = json.loads(Path(os.environ["PUTS_LOAD_PLAN"]).read_text(encoding="utf-8"))
SURFACE = Surface.from_dict(PLAN["surface"])
TRAFFIC = read_traffic(Path(PLAN["traffic"]))
WARM_UP_S = float(PLAN["warm_up_s"])

samples = Samples()
turns, sent = itertools.count(), itertools.count()
started = {"s": time.perf_counter()}


def write_summary(**_: Any) -> None:
    """The summary, next to Locust's own files."""
    duration_s = time.perf_counter() - started["s"]
    write_json(PLAN["summary"], summarize(samples, duration_s=duration_s, users=int(PLAN["users"])))


def begin(environment: Any, **_: Any) -> None:
    """The duration begins when all users run; Locust's own clock begins before it has loaded this file."""

    def count_down(**_: Any) -> None:
        started["s"] = time.perf_counter()
        gevent.spawn_later(float(PLAN["duration_s"]), environment.runner.quit)

    environment.events.spawning_complete.add_listener(count_down)


events.init.add_listener(begin)  # type: ignore[no-untyped-call]
events.quitting.add_listener(write_summary)  # type: ignore[no-untyped-call]


class Caller(FastHttpUser):
    """A page that asks for rankings, one after the other."""

    wait_time = constant(0)
    network_timeout = 10.0
    connection_timeout = 10.0

    @task(9)
    def rank(self) -> None:
        """One request ranked twice: with the control on, and with it off."""
        turn = next(turns)
        prepared = TRAFFIC[turn % len(TRAFFIC)]
        took_ms: dict[bool, float | None] = {}
        for control in (True, False) if turn % 2 else (False, True):
            took_ms[control] = self._rank(prepared, control)
        on_ms, off_ms = took_ms[True], took_ms[False]
        if on_ms is not None and off_ms is not None and time.perf_counter() - started["s"] > WARM_UP_S:
            samples.add_pair(on_ms, off_ms)

    @task(1)
    def weights(self) -> None:
        """Weights only."""
        prepared = TRAFFIC[next(turns) % len(TRAFFIC)]
        took_ms = self._send("/v1/weights", "/v1/weights", prepared.weights, None, control=True)
        if took_ms is not None:
            samples.weights_ms.append(took_ms)

    def _rank(self, prepared: Prepared, control: bool) -> float | None:
        name = f"/v1/rank control {'on' if control else 'off'}"
        body = prepared.rank_on if control else prepared.rank_off
        return self._send("/v1/rank", name, body, prepared, control=control)

    def _send(
        self, path: str, name: str, body: bytes, prepared: Prepared | None, *, control: bool
    ) -> float | None:
        """Send and check; milliseconds, or None if the answer is wrong."""
        headers = {"content-type": "application/json"}
        # Locust's annotation leaves bytes out; geventhttpclient takes them as they are.
        data: Any = numbered(body, next(sent))
        begin_s = time.perf_counter()
        with self.client.post(path, data=data, name=name, headers=headers, catch_response=True) as response:
            took_ms = (time.perf_counter() - begin_s) * 1000.0
            answer, problem = self._judge(response, prepared, control)
            samples.add_answer(answer, problem, control=control)
            if problem is None:
                response.success()
                return took_ms
            response.failure(problem)
            return None

    @staticmethod
    def _judge(
        response: Any, prepared: Prepared | None, control: bool
    ) -> tuple[dict[str, Any] | None, str | None]:
        if response.status_code != 200:
            return None, f"status {response.status_code}: {(response.text or '')[:200]}"
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            return None, "the answer is not JSON"
        if prepared is None:
            return answer, check_weights(answer, SURFACE, control=control)
        return answer, check_ranking(answer, SURFACE, prepared, control=control)
