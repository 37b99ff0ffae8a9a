"""``experiment.html``: an A/B test as one self-contained page, readable without scripts and offline."""

from __future__ import annotations

from html import escape

from ray_train import experiment_charts as charts
from ray_train.experiment_report import Cell, Experiment, GuardrailVerdict, Prediction, SampleRatio
from ray_train.experiment_verdict import experiment_verdict, share_steps
from ray_train.frontier_charts import percent
from ray_train.page_parts import Row, document, figure, grid, header, instant, section, table

PAGE = "experiment.html"
"""Name of the page in the experiment's folder."""


def render_experiment(experiment: Experiment) -> str:
    """The whole page."""
    sections = [
        _header(experiment),
        _sample_ratios(experiment),
        _lifts(experiment),
        _guardrails(experiment),
        _predictions(experiment),
        _versions(experiment),
        _counts(experiment),
        _reading(experiment),
    ]
    return document(f"Experiment of {experiment.surface_object.name}", sections)


def _header(experiment: Experiment) -> str:
    judged = experiment_verdict(experiment)
    rules = experiment.attribution
    cells = [cell for arm in experiment.arms if (cell := experiment.cell(arm)) is not None]
    used = ", ".join(f"{name} {rule}" for name, rule in rules["metrics"].items())
    facts = [
        ("arms", f"{', '.join(experiment.treatments)} against {experiment.control}"),
        (
            "decisions",
            f"{instant(experiment.first_decision)} to {instant(experiment.last_decision)} UTC, from "
            f"{experiment.decisions}",
        ),
        (
            "users, requests",
            f"{sum(cell.users for cell in cells):,} users, {sum(cell.requests for cell in cells):,} logged "
            f"requests that stand for {sum(cell.weighted_requests for cell in cells):,.0f}",
        ),
        ("events", f"{experiment.event_counts.get('counted', 0):,} counted, from {experiment.events}"),
        (
            "attribution",
            f"within {_span(rules['window_s'])} of the decision; complete up to "
            f"{instant(rules['as_of'])} UTC",
        ),
        ("metrics", used),
        ("intervals", f"{100 * experiment.confidence:g} %, {experiment.interval}"),
    ]
    if experiment.frontier is not None:
        match = "" if experiment.frontier.matches_decisions else "; the policies did not all come from it"
        facts.append(
            ("frontier", f"run {experiment.frontier.run_id}, {experiment.frontier.fingerprint[:12]}{match}")
        )
    title = f"Experiment of {experiment.surface_object.name}"
    return header(title, judged.level, judged.headline, judged.text, facts)


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} seconds"


# --------------------------------------------------------------------------------------- sections

_RATIO = {
    "as_declared": "as declared",
    "mismatch": "MISMATCH",
    "not_declared": "not checked\ngive --shares",
}


def _sample_ratios(experiment: Experiment) -> str:
    rows = [(_ratio_cells(experiment, ratio), "") for ratio in experiment.sample_ratios]
    head = ["policy version", *experiment.arms, "chi-square", "p", "verdict"]
    note = (
        "Users per arm, and the share declared for it. Where chance alone would give such numbers less than "
        "once in a thousand times, arms lose users unequally and lifts mean nothing."
    )
    steps = "".join(
        f"<li>{escape(f'Shares changed under policy version {version}: {text}')}</li>"
        for version, text in share_steps(experiment)
    )
    return section("Sample ratio", table(head, rows) + (f"<ul>{steps}</ul>" if steps else ""), note)


def _ratio_cells(experiment: Experiment, ratio: SampleRatio) -> list[str]:
    total = max(sum(ratio.users.values()), 1)
    shares = []
    for arm in experiment.arms:
        users = ratio.users.get(arm)
        if users is None:
            shares.append("–")
            continue
        expected = f", share {100 * ratio.shares[arm]:.4g} %" if ratio.declared else ""
        shares.append(f"{users:,}\n{100 * users / total:.2f} %{expected}")
    p_value = f"{ratio.p_value:.3g}" if ratio.declared else "–"
    chi = f"{ratio.chi_square:.2f}" if ratio.declared else "–"
    return [str(ratio.policy_version), *shares, chi, p_value, _RATIO[ratio.verdict]]


def _lifts(experiment: Experiment) -> str:
    metrics = experiment.surface_object.metrics
    figures = []
    for i, name in enumerate(experiment.outcomes):
        rows = charts.lift_rows(experiment, name)
        if rows:
            title = f"{name} (guardrail)" if name in metrics else name
            figures.append(figure(charts.forest(title, f"forest{i}", rows, charts.limits(experiment, name))))
    body_rows = [
        _cell_row(experiment, cell, cohort)
        for cohort in (None, *experiment.cohorts)
        for arm in experiment.arms
        if (cell := experiment.cell(arm, None, cohort)) is not None
    ]
    body = grid(figures) + table(["arm", *_columns(experiment)], body_rows)
    note = "Each cohort against the control in the same cohort. Dashed lines are limits of guardrails."
    return section("Lifts against the control", body, note)


def _columns(experiment: Experiment) -> list[str]:
    metrics = experiment.surface_object.metrics
    names = [
        f"{name} lift (guardrail)" if name in metrics else f"{name} lift" for name in experiment.outcomes
    ]
    return [*names, "users", "requests", "fallback", "control off"]


def _cell_row(experiment: Experiment, cell: Cell, name: str | int | None) -> Row:
    where = "everybody" if name is None else f"version {name}" if isinstance(name, int) else name
    control = cell.arm == experiment.control
    effects = [cell.effects[outcome] for outcome in experiment.outcomes]
    shown = [
        f"value {effect.value:.4g}"
        if control and effect.value is not None
        else percent(effect.lift, effect.interval)
        for effect in effects
    ]
    shares = ["–" if s is None else f"{100 * s:.2f} %" for s in (cell.fallback_share, cell.control_off_share)]
    cells = [f"{cell.arm}\n{where}", *shown, f"{cell.users:,}", f"{cell.requests:,}", *shares]
    return cells, "quiet" if control else ""


def _guardrails(experiment: Experiment) -> str:
    if not experiment.guardrails:
        return ""
    rows: list[Row] = [
        (
            [
                f"{item.outcome}\n{item.arm}",
                _limit(item),
                percent(item.lift, item.interval),
                item.verdict.upper() if item.verdict == "breached" else item.verdict,
            ],
            "",
        )
        for item in experiment.guardrails
    ]
    note = (
        "A limit holds if the whole interval is within it, and is breached if all of it is beyond; in "
        "between, the test has not run long enough to tell."
    )
    return section("Guardrails", table(["outcome", "limit of the lift", "lift", "verdict"], rows), note)


def _limit(item: GuardrailVerdict) -> str:
    parts = [
        f"{sign} {percent(limit)}"
        for sign, limit in (("≥", item.minimum_lift), ("≤", item.maximum_lift))
        if limit is not None
    ]
    return ", ".join(parts)


def _name(prediction: Prediction) -> str:
    parts = [prediction.arm]
    if prediction.policy_version is not None:
        parts[0] += f" v{prediction.policy_version}"
    if prediction.cohort is not None:
        parts.append(prediction.cohort)
    return " ".join(parts)


def _predictions(experiment: Experiment) -> str:
    if experiment.frontier is None:
        return ""
    if not experiment.predictions:
        body = "<p>No arm used one scalarization throughout that is a point of the frontier.</p>"
        return section("Predicted and measured", body)
    shown = experiment.predictions
    figures = [
        figure(
            charts.predicted_and_measured(
                name, f"predicted{i}", shown, [_name(p) for p in shown], _correlation(experiment, name)
            )
        )
        for i, name in enumerate(experiment.outcomes)
    ]
    rows: list[Row] = []
    for p in experiment.predictions:
        scalarization = ", ".join(f"{part:.3g}" for part in p.scalarization)
        for r, name in enumerate(experiment.outcomes):
            cells = [
                "" if r else f"{_name(p)}\nλ = ({scalarization})",
                name,
                percent(p.predicted[name], p.predicted_intervals[name]),
                percent(p.measured[name], p.measured_intervals[name]),
            ]
            rows.append((cells, "quiet" if p.cohort is not None else ""))
    head = ["operating point", "outcome", "predicted", "measured"]
    note = (
        "Predicted: the lift against production that the frontier read from exploration logs. Measured: the "
        "lift against the control arm here. On the dashed line they agree; whiskers are both "
        "intervals, pale dots are cohorts. A correlation needs three points that differ."
    )
    return section("Predicted and measured", grid(figures) + table(head, rows), note)


def _correlation(experiment: Experiment, outcome: str) -> str:
    found = [c for c in experiment.correlations if c.outcome == outcome and c.pearson is not None]
    for item in found:  # everybody's first
        bounds = f" [{item.interval[0]:.2f}, {item.interval[1]:.2f}]" if item.interval else ""
        over = "arms" if item.among == "everybody" else "arms in cohorts"
        return f"r = {item.pearson:.3f}{bounds} over {item.points} {over}"
    return "no correlation"


def _versions(experiment: Experiment) -> str:
    if not experiment.versions:
        return ""
    rows = [
        _cell_row(experiment, cell, version)
        for version in experiment.versions
        for arm in experiment.arms
        if (cell := experiment.cell(arm, version)) is not None
    ]
    note = (
        "Everybody, by the policy version that answered. Lifts over versions, above, compare within each "
        "version: where an arm meant something else in another version, they are of both."
    )
    return section("By policy version", table(["arm", *_columns(experiment)], rows), note)


def _counts(experiment: Experiment) -> str:
    rows: list[Row] = [
        ([f"{kind} {name.replace('_', ' ')}", f"{number:,}"], "")
        for kind, counts in (
            ("decisions", experiment.decision_counts),
            ("events", experiment.event_counts),
        )
        for name, number in counts.items()
    ]
    return section(
        "What was counted",
        f"<details><summary>{len(rows)} rows</summary>{table(['what', 'rows'], rows)}</details>",
        "Every decision and event is in exactly one row.",
    )


def _reading(experiment: Experiment) -> str:
    looks = len(experiment.treatments) * len(experiment.outcomes)
    by_chance = (1.0 - experiment.confidence) * looks
    items = [
        "A lift is the arm's value relative to the control's; a value is the mean of the outcome over the "
        "requests, with objectives as whether they happened (Eq. 3 of arXiv 2605.16344). Requests that were "
        "logged as a sample count as many as they stand for.",
        "Arms are compared within times in which their shares did not change, with the same weights for "
        "both: a ramp gives the treatment more of the late days than of the early ones. A value is of the "
        "whole time, so there a lift is not the quotient of two values.",
        "Intervals treat users as independent, not requests. Each holds for one look: of everybody's "
        f"{looks} about {by_chance:.1f} would exclude zero by chance alone, and looking every day adds more.",
        "Requests that fell back to production weights stay in their arm, for that is what the arm does in "
        "production; the column says how many. Requests that explored are left out of every arm, and so are "
        "those with the control switched off by the operator or the caller: they got production weights in "
        "every arm, and that is no fault. The last column says how many of the arm's requests they were.",
    ]
    body = f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
    return section("How to read this", body)
