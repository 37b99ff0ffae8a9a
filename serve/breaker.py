"""The circuit breaker of one server: stop paying the budget while it is broken, notice when it is back.

Three kinds of state and a pure function: ``after(breaker, event, now_s) → (breaker, decision)``::

    closed     requests are sent. Opens on ``failures`` failed calls in a row, on ``late`` late or failed
               ones in a row, or when the share of late and failed calls over ``window_s`` reaches
               ``share`` with at least ``minimum`` calls; and at once when a call is stuck. After a late
               or failed call the watcher asks by itself, to find out whether the server is stuck: one
               among several has so few calls, once others have fewer in flight, that counting takes long.
    open       nothing is sent for ``open_s``; doubled, up to ``open_limit_s``, while probes keep failing.
    half_open  probes are sent one at a time, ``probe_s`` apart, and never by a request: a probe is a real
               inference of the watcher (serve.links). ``successes`` answers inside the budget close it;
               one failed or late probe opens it again.

A breaker that has just closed is on parole for ``window_s``: the first two late calls in a row, or the
first failed one, open it again, for a pause twice as long as before, up to ``relapse_limit_s``. That is a
server which answers probes in time and requests late: without it every half second would cost a few
requests the whole budget.

What a call teaches is weighed only in the epoch it began in: a call that was sent before the breaker
opened says nothing of the server that came back. A server that works again is in use after at most
``open_limit_s + successes × probe_s`` and the time of its probes: 1.3 s with the defaults; a first probe
that is late, because the server is still cold, costs ``open_limit_s`` more, and a relapse begins with
``relapse_limit_s``: 4.3 s for all of them together.

Why not a library: those on PyPI for asyncio (``purgatory`` 3.0, ``aiobreaker`` 1.2) are little kept, read
the wall clock themselves, know one counter of exceptions and nothing of lateness (for us a call that is
still running is the usual fault), and probe with a caller's request, who would pay for it.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["closed", "open", "half_open"]

Event = Literal["answered", "late", "failed", "stuck", "due"]
"""What became of a call or a probe; stuck: no answer in ``stuck_s``, which no load explains; due: the clock
has moved, is it time for a probe?"""

KIND_VALUES: dict[Kind, int] = {"closed": 0, "half_open": 1, "open": 2}
"""As the metric shows it."""

_Positive = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=100_000)]


class BreakerConfig(BaseModel):
    """When to stop asking a server, and how to find out that it works again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failures: _Count = 3
    """Failed calls in a row that open: nobody answered, or the answer was rubbish."""
    late: _Count = 8
    """Calls in a row without an answer in time that open. More than ``failures``: one stall of the machine
    makes everything in flight late, and is over."""
    window_s: _Positive = 10.0
    """Over which the share is taken: the current half of it and the one before."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Late and failed calls among all, over the window, that open."""
    minimum: _Count = 20
    """Fewer calls in the window than these say nothing of a share."""
    stuck_s: _Positive = 1.0
    """A watcher's own call without an answer for so long opens."""
    open_s: _Positive = 0.5
    """Nothing is sent for so long after opening; doubled each time a probe fails."""
    open_limit_s: _Positive = 1.0
    """Longest pause between failing probes. Bounds the time to come back."""
    relapse_limit_s: _Positive = 3.0
    """Longest first pause of a breaker that opens again within ``window_s``."""
    probe_s: _Positive = 0.1
    """Between two probes that were answered."""
    successes: _Count = 3
    """Probes answered in a row that close."""

    @model_validator(mode="after")
    def _limit_above_start(self) -> Self:
        if self.open_limit_s < self.open_s:
            raise ValueError(f"open_limit_s {self.open_limit_s} is below open_s {self.open_s}")
        if self.relapse_limit_s < self.open_s:
            raise ValueError(f"relapse_limit_s {self.relapse_limit_s} is below open_s {self.open_s}")
        return self


class Breaker(NamedTuple):
    """What has been seen of one server. A tuple, since every call makes a new one."""

    kind: Kind = "closed"
    epoch: int = 0
    """Counts openings and closings."""
    failed_in_row: int = 0
    bad_in_row: int = 0
    """Late or failed."""
    half_window: int = 0
    """Number of the current half of the window, counted from clock zero."""
    calls: int = 0
    bad: int = 0
    calls_before: int = 0
    """In the half before the current one."""
    bad_before: int = 0
    due_s: float = 0.0
    """Open and half open: when the next probe may be sent. Closed: when parole ends."""
    pause_s: float = 0.0
    """The newest pause; the next one is twice as long."""
    answered: int = 0
    """Half open: probes answered in a row."""

    @property
    def admits(self) -> bool:
        """Whether requests are sent."""
        return self.kind == "closed"


class Decision(NamedTuple):
    """What to do."""

    probe: bool
    """Send one now, off the request path."""
    wait_s: float
    """Open and half open: until the next probe may be sent. 0 in a closed breaker."""
    turned: Kind | None
    """The kind of state that has just been entered."""


_STAY = Decision(probe=False, wait_s=0.0, turned=None)


def after(
    breaker: Breaker, event: Event, now_s: float, config: BreakerConfig, *, epoch: int | None = None
) -> tuple[Breaker, Decision]:
    """(what was seen, what happens) → (what has now been seen, what to do).

    Args:
        breaker: What was seen so far.
        event: What became of a call or probe, or ``due``.
        now_s: Any monotonic clock.
        config: The thresholds.
        epoch: Epoch in which the call or probe began; None is the present one.
    """
    if epoch is not None and epoch != breaker.epoch:
        return breaker, _STAY
    if breaker.kind == "closed":
        return _closed(breaker, event, now_s, config)
    if event == "due":
        return _due(breaker, now_s)
    if event == "answered":
        return _probe_answered(breaker, now_s, config)
    return _opened(breaker, now_s, min(breaker.pause_s * 2.0, config.open_limit_s))


def _closed(breaker: Breaker, event: Event, now_s: float, config: BreakerConfig) -> tuple[Breaker, Decision]:
    if event == "due":
        return breaker, _STAY
    bad = event != "answered"
    half = int(now_s // (config.window_s / 2.0))
    calls, bads = breaker.calls, breaker.bad
    calls_before, bads_before = breaker.calls_before, breaker.bad_before
    if half != breaker.half_window:
        adjacent = half == breaker.half_window + 1
        calls_before, bads_before = (calls, bads) if adjacent else (0, 0)
        calls = bads = 0
    seen = Breaker(
        epoch=breaker.epoch,
        failed_in_row=breaker.failed_in_row + 1 if event == "failed" else 0,
        bad_in_row=breaker.bad_in_row + 1 if bad else 0,
        half_window=half,
        calls=calls + 1,
        bad=bads + bad,
        calls_before=calls_before,
        bad_before=bads_before,
        due_s=breaker.due_s,
        pause_s=breaker.pause_s,
    )
    if event == "stuck" or (bad and _is_broken(seen, config)):
        relapse = now_s < breaker.due_s
        pause_s = min(breaker.pause_s * 2.0, config.relapse_limit_s) if relapse else config.open_s
        return _opened(seen, now_s, pause_s)
    return seen, _STAY


def _is_broken(seen: Breaker, config: BreakerConfig) -> bool:
    if seen.failed_in_row >= config.failures or seen.bad_in_row >= config.late:
        return True
    calls = seen.calls + seen.calls_before
    return calls >= config.minimum and seen.bad + seen.bad_before >= config.share * calls


def _opened(breaker: Breaker, now_s: float, pause_s: float) -> tuple[Breaker, Decision]:
    # Out of half_open the epoch stays: no request was sent meanwhile, and the pause keeps growing.
    epoch = breaker.epoch + (breaker.kind == "closed")
    seen = Breaker(kind="open", epoch=epoch, due_s=now_s + pause_s, pause_s=pause_s)
    return seen, Decision(probe=False, wait_s=pause_s, turned="open")


def _due(breaker: Breaker, now_s: float) -> tuple[Breaker, Decision]:
    if now_s < breaker.due_s:
        return breaker, Decision(probe=False, wait_s=breaker.due_s - now_s, turned=None)
    if breaker.kind == "half_open":
        return breaker, Decision(probe=True, wait_s=0.0, turned=None)
    seen = Breaker(kind="half_open", epoch=breaker.epoch, due_s=breaker.due_s, pause_s=breaker.pause_s)
    return seen, Decision(probe=True, wait_s=0.0, turned="half_open")


def _probe_answered(breaker: Breaker, now_s: float, config: BreakerConfig) -> tuple[Breaker, Decision]:
    if breaker.kind == "open":
        return breaker, Decision(probe=False, wait_s=max(0.0, breaker.due_s - now_s), turned=None)
    answered = breaker.answered + 1
    if answered >= config.successes:
        parole = Breaker(
            epoch=breaker.epoch + 1,
            failed_in_row=config.failures - 1,
            bad_in_row=max(0, config.late - 2),
            due_s=now_s + config.window_s,
            pause_s=breaker.pause_s,
        )
        return parole, Decision(probe=False, wait_s=0.0, turned="closed")
    seen = Breaker(
        kind="half_open",
        epoch=breaker.epoch,
        due_s=now_s + config.probe_s,
        pause_s=breaker.pause_s,
        answered=answered,
    )
    return seen, Decision(probe=False, wait_s=config.probe_s, turned=None)
