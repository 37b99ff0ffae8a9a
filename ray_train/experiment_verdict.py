"""What an experiment allows to say, in one honest sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ray_train.experiment_report import Cell, Experiment

Level = Literal["better", "neutral", "nothing"]
"""Good news; neither; or something is wrong."""


@dataclass(frozen=True)
class ExperimentVerdict:
    """The headline, the sentence, and how good the news is."""

    level: Level
    headline: str
    text: str


def experiment_verdict(experiment: Experiment) -> ExperimentVerdict:
    """Judge everybody's lifts by their intervals; a broken split of users outweighs everything.

    * a sample-ratio mismatch: the arms hold different people, no lift means anything;
    * a guardrail whose whole interval is beyond its limit;
    * an arm with an objective's interval above zero and none that reaches below it;
    * else what goes up and down.
    """
    broken = [ratio for ratio in experiment.sample_ratios if ratio.verdict == "mismatch"]
    if broken:
        worst = min(broken, key=lambda ratio: ratio.p_value)
        ramped = worst.policy_version in experiment.ramped_versions
        hint = " Its shares changed with time; of a ramp no one share can be declared." if ramped else ""
        return ExperimentVerdict(
            "nothing",
            "SAMPLE-RATIO MISMATCH: do not use these lifts.",
            f"Policy version {worst.policy_version} has other numbers of users per arm than declared "
            f"(p = {worst.p_value:.2g}): arms lose or gain users, and not by chance. Find out why first."
            + hint,
        )
    if experiment.mixed_versions:
        return ExperimentVerdict(
            "nothing",
            "The arms' shares never stood still: do not use these lifts.",
            f"Under policy version {', '.join(map(str, experiment.mixed_versions))} they changed more often "
            "than can be told apart, so that the lifts compare times as well as arms. Take a part of the "
            "decisions in which they held, with --after and --as-of.",
        )
    breached = [guardrail for guardrail in experiment.guardrails if guardrail.verdict == "breached"]
    if breached:
        names = ", ".join(f"{item.outcome} in arm {item.arm}" for item in breached)
        return ExperimentVerdict("nothing", "A guardrail is breached.", f"Beyond the limit: {names}.")
    unchecked = any(not ratio.declared for ratio in experiment.sample_ratios)
    caution = (
        " The arms' shares were not declared, so whether the split is sound is unknown." if unchecked else ""
    )
    cells = [cell for arm in experiment.treatments if (cell := experiment.cell(arm)) is not None]
    objectives = experiment.surface_object.objectives
    safe = [cell.arm for cell in cells if _safely_better(cell, objectives)]
    if safe:
        return ExperimentVerdict(
            "better",
            "Better than the control.",
            f"{', '.join(safe)}: above the control on at least one objective and not below it on any, at the "
            f"lower end of the intervals.{caution}",
        )
    told = [text for cell in cells if (text := _moves(cell, experiment.outcomes))]
    if told:
        return ExperimentVerdict("neutral", "A trade-off.", f"{'; '.join(told)}.{caution}")
    return ExperimentVerdict(
        "neutral",
        "No difference yet.",
        f"No interval excludes zero: the arms cannot be told apart on these users.{caution}",
    )


def share_steps(experiment: Experiment) -> Iterator[tuple[int, str]]:
    """Each version in which the treatments' shares changed, and how, in words."""
    for version in experiment.ramped_versions:
        times = [time for time in experiment.share_times if time.policy_version == version]
        steps = [
            f"from {time.start[:16].replace('T', ' ')} "
            + ", ".join(f"{arm} {100 * time.shares[arm]:.3g} %" for arm in experiment.treatments)
            for time in times
        ]
        yield version, "; ".join(steps) + " (lifts compare within these times)"


def _safely_better(cell: Cell, objectives: tuple[str, ...]) -> bool:
    intervals = [cell.effects[name].interval for name in objectives]
    known = [interval for interval in intervals if interval is not None]
    return (
        len(known) == len(intervals)
        and all(low >= 0 for low, _ in known)
        and any(low > 0 for low, _ in known)
    )


def _moves(cell: Cell, outcomes: tuple[str, ...]) -> str:
    up, down = [], []
    for name in outcomes:
        interval = cell.effects[name].interval
        if interval is not None:
            up += [name] if interval[0] > 0 else []
            down += [name] if interval[1] < 0 else []
    said = [f"{word} {', '.join(names)}" for word, names in (("raises", up), ("lowers", down)) if names]
    return f"{cell.arm} {' and '.join(said)}" if said else ""
