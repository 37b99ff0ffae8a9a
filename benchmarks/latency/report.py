"""The measurement as plain data, as a Markdown table, and as hits and misses of DESIGN.md's targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.latency.blocks import CHOSEN, Added, Estimate, added, rate_ratio
from benchmarks.latency.measure import Measured, Paired
from benchmarks.sidecar.contestants import BARE, SIDECAR

LEVELS = (0.5, 0.9, 0.95, 0.99)
BUSY_LOAD = 1.0
"""A load average above this before the first request says that somebody else was at work."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target and what was measured."""

    target: str
    limit: float
    at_most: bool
    estimate: Estimate
    unit: str

    @property
    def hit(self) -> bool:
        """Whether the figure itself is on the right side."""
        return self.estimate.value <= self.limit if self.at_most else self.estimate.value >= self.limit

    @property
    def certain(self) -> bool:
        """Whether the whole interval is on the same side."""
        low, high = self.estimate.low, self.estimate.high
        return (
            high <= self.limit or low > self.limit if self.at_most else low >= self.limit or high < self.limit
        )

    def line(self) -> str:
        """For people."""
        e, sign = self.estimate, "≤" if self.at_most else "≥"
        word = "hit" if self.hit else "MISSED"
        doubt = "" if self.certain else " (the interval holds the limit)"
        return (
            f"{self.target} {sign} {self.limit:g} {self.unit}: {e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]: "
            f"{word}{doubt}"
        )


def quantile_rows(paired: Paired) -> tuple[Added, ...]:
    """What is added at every level."""
    return tuple(added(paired.blocks, level) for level in LEVELS)


def ratios(measured: Measured) -> dict[str, Estimate]:
    """P3: requests/s of every contestant over the bare application's."""
    base = measured.capacity.get(BARE)
    if base is None:
        return {}
    return {name: rate_ratio(rates, base) for name, rates in measured.capacity.items()}


def verdicts(measured: Measured) -> list[Verdict]:
    """The targets that this run can judge; none of a quick one."""
    if measured.settings.quick:
        return []
    found = []
    for one in measured.paired:
        if one.part == "P1" and one.share is not None:
            for level, limit in ((0.5, 0.3), (0.99, 1.0)):
                difference = added(one.blocks, level).difference
                target = f"P1 {one.title}: Δp{level * 100:.0f}{_unchosen(one)}"
                found.append(
                    Verdict(target=target, limit=limit, at_most=True, estimate=difference, unit="ms")
                )
        if one.part == "P2" and one.share == 0.25:
            difference = added(one.blocks, 0.5).difference
            target = f"P2 at 25 % of saturation: Δp50{_unchosen(one)}"
            found.append(Verdict(target=target, limit=1.0, at_most=True, estimate=difference, unit="ms"))
    share = ratios(measured).get(SIDECAR)
    if share is not None:
        target = "P3 sidecar / bare application"
        found.append(Verdict(target=target, limit=0.9, at_most=False, estimate=share, unit="×"))
    return found


def _unchosen(one: Paired) -> str:
    """A remark where the on arm was not on: too many of its answers are fallbacks."""
    share = one.chosen / max(one.asked, 1)
    return "" if share >= CHOSEN else f" (only {share:.0%} chosen by the network)"


def as_json(measured: Measured) -> dict[str, Any]:
    """Everything but the single latencies."""
    settings = asdict(measured.settings)
    return {
        "version": 1,
        "machine": dict(measured.machine),
        "settings": settings,
        "network": measured.network,
        "paired": [_paired_json(one) for one in measured.paired],
        "capacity": {
            "in_flight": measured.in_flight,
            "failures": measured.failures,
            "chosen": dict(measured.capacity_chosen),
            "rates_per_s": {name: [round(r, 1) for r in rates] for name, rates in measured.capacity.items()},
            "ratio_to_bare": {name: ratio.as_json() for name, ratio in ratios(measured).items()},
        },
        "verdicts": [{"line": v.line(), "hit": v.hit, "certain": v.certain} for v in verdicts(measured)],
    }


def _paired_json(one: Paired) -> dict[str, Any]:
    return {
        "part": one.part,
        "title": one.title,
        "loop": one.loop,
        "share": one.share,
        "saturation": {
            str(n): {"per_s": round(rate, 1), "chosen": round(one.saturation.chosen[n], 4)}
            for n, rate in one.saturation.rates.items()
        },
        "requests": one.requests,
        "failures": one.failures,
        "problems": dict(one.problems),
        "chosen": one.chosen,
        "asked": one.asked,
        "fallbacks": dict(one.fallbacks),
        "lateness_ms": [round(value, 3) for value in one.lateness_ms],
        "quantiles": [
            {
                "level": row.level,
                "on_ms": round(row.on_ms, 3),
                "off_ms": round(row.off_ms, 3),
                "difference_ms": row.difference.as_json(),
                "per_block_ms": [round(value, 3) for value in row.per_block],
            }
            for row in quantile_rows(one)
        ],
    }


def as_markdown(measured: Measured) -> str:
    """The table, for people and for RESULTS.md."""
    lines = [_about(measured), ""]
    if measured.paired:
        lines += _paired_table(measured.paired)
    if measured.capacity:
        lines += ["", *_capacity_table(measured)]
    lines += ["", *(f"- {verdict.line()}" for verdict in verdicts(measured))]
    return "\n".join(lines).rstrip() + "\n"


def _about(measured: Measured) -> str:
    machine, s = measured.machine, measured.settings
    load = float(str(machine.get("load_average", 0.0)))
    busy = f"; BUSY, load average {load:g} before it began" if load > BUSY_LOAD else ""
    quick = " A quick run: it tests the path, its figures are none." if s.quick else ""
    return (
        f"{machine.get('time')}: {machine.get('cores')} cores of {machine.get('cpu')}{busy}; "
        f"`{machine.get('command')}`; value network: {measured.network}; {s.blocks} blocks of 2 × "
        f"{s.block_s:g} s, {s.arrivals} arrivals, latencies from when a request was due; ranker replayed: "
        f"log-normal, p50 {s.ranker_p50_ms:g} ms, p99 {s.ranker_p99_ms:g} ms; saturation: the most right "
        f"answers a second that closed loops of up to {max(s.ladder)} callers got, 95 % chosen by the "
        f"network.{quick}"
    )


def _paired_table(paired: Sequence[Paired]) -> list[str]:
    lines = [
        "| | loop | requests | failed | by the network | p50 on / off, ms | Δp50 | Δp90 | Δp99 "
        "| p99 on / off |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in paired:
        p50, p90, _, p99 = quantile_rows(one)
        cells = [f"{a.on_ms:.2f} / {a.off_ms:.2f}" for a in (p50, p99)]
        deltas = [
            f"{a.difference.value:+.2f} [{a.difference.low:+.2f}, {a.difference.high:+.2f}]"
            for a in (p50, p90, p99)
        ]
        chosen = f"{one.chosen / max(one.asked, 1):.2%}"
        lines.append(
            f"| {one.part} {one.title} | {one.loop} | {one.requests:,} | {one.failures} | {chosen} | "
            f"{cells[0]} | {' | '.join(deltas)} | {cells[1]} |"
        )
    return lines


def _capacity_table(measured: Measured) -> list[str]:
    lines = [
        f"| P3, {measured.in_flight} callers, {measured.failures} failed | requests/s, mean of turns | "
        "lowest–highest turn | × bare | by the network |",
        "|---|---|---|---|---|",
    ]
    for name, ratio in ratios(measured).items():
        rates = measured.capacity[name]
        lines.append(
            f"| {name} | {sum(rates) / len(rates):.0f} | {min(rates):.0f}–{max(rates):.0f} | "
            f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] | "
            f"{f'{measured.capacity_chosen[name]:.2%}' if name in measured.capacity_chosen else 'all'} |"
        )
    return lines
