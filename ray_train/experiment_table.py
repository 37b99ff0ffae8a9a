"""An experiment on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ray_train.experiment_report import Experiment
from ray_train.experiment_verdict import experiment_verdict, share_steps
from ray_train.frontier_table import format_lift


def print_experiment(console: Console, experiment: Experiment) -> None:
    """Lifts by arm and cohort, the checks, the correlations, and the verdict."""
    confidence = f"{100 * experiment.confidence:g} %"
    table = Table(
        title=f"Lifts against {escape(experiment.control)}, {confidence} intervals",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("arm", no_wrap=True)
    switched = any(cell.control_off_share for cell in experiment.cells)
    last = "users\nfell back" + ("\ncontrol off" if switched else "")
    for name in (*experiment.outcomes, last):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in experiment.treatments:
        for cohort in (None, *experiment.cohorts):
            cell = experiment.cell(arm, None, cohort)
            if cell is None:
                continue
            effects = [cell.effects[name] for name in experiment.outcomes]
            shares = [cell.fallback_share, *([cell.control_off_share] if switched else [])]
            shown = ["–" if share is None else f"{100 * share:.2f} %" for share in shares]
            table.add_row(
                f"[bold]{escape(arm)}[/]" if cohort is None else f"  {escape(cohort)}",
                *(format_lift(effect.lift, effect.interval) for effect in effects),
                "\n".join([f"{cell.users:,}", *shown]),
            )
    console.print(table)
    for line in _lines(experiment):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _lines(experiment: Experiment) -> list[str]:
    lines = []
    for ratio in experiment.sample_ratios:
        users = ", ".join(f"{arm} {count:,}" for arm, count in ratio.users.items())
        said = {
            "as_declared": f"as declared (chi-square {ratio.chi_square:.2f}, p = {ratio.p_value:.3g})",
            "mismatch": f"MISMATCH (chi-square {ratio.chi_square:.2f}, p = {ratio.p_value:.3g})",
            "not_declared": "not checked, no --shares",
        }[ratio.verdict]
        lines.append(f"sample ratio, policy version {ratio.policy_version}: {said}: {users}")
    lines += [f"shares changed under policy version {v}: {steps}" for v, steps in share_steps(experiment)]
    for item in experiment.guardrails:
        verdict = item.verdict.upper() if item.verdict == "breached" else item.verdict
        lines.append(f"guardrail {item.outcome}, arm {item.arm}: {verdict}")
    for found in experiment.correlations:
        if found.pearson is not None:
            bounds = "" if found.interval is None else f" [{found.interval[0]:.3f}, {found.interval[1]:.3f}]"
            over = "arms" if found.among == "everybody" else "arms in cohorts"
            lines.append(
                f"offline against online, {found.outcome}: r = {found.pearson:.3f}{bounds} over "
                f"{found.points} {over}"
            )
    judged = experiment_verdict(experiment)
    return [*lines, f"{judged.headline} {judged.text}"]
