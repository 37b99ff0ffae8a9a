"""``frontier.html``: the frontier as one self-contained page, readable without scripts and offline."""

from __future__ import annotations

from html import escape

from ray_train import frontier_charts as charts
from ray_train.page_parts import document, figure, grid, header, instant, section, table
from ray_train.sweep import MINIMUM_HITS
from ray_train.verdict import verdict
from triton_models.frontier import Estimate, Frontier

PAGE = "frontier.html"
"""Name of the page inside a run's folder."""


def render_page(frontier: Frontier) -> str:
    """The whole page."""
    sections = [
        _header(frontier),
        _scatter(frontier),
        _candidates(frontier),
        _curves(frontier),
        _cohorts(frontier),
        _points(frontier),
        _reading(frontier),
    ]
    return document(f"Frontier of run {frontier.run.run_id}", sections)


def _header(frontier: Frontier) -> str:
    judged = verdict(frontier)
    surface = frontier.surface_object
    points = frontier.points_of(None)
    hits = [point.hits for point in points]
    window = frontier.window
    rejected = f", {window.rows_rejected:,} bad ones left out" if window.rows_rejected else ""
    share = (
        "hold-out, later than training" if window.split == "holdout" else "all rows, training rows included"
    )
    estimator = frontier.estimator
    resamples = f", {estimator.resamples:,} resamples, seed {estimator.seed}" if estimator.resamples else ""
    baseline = frontier.production.estimate(None)
    values = {} if baseline is None else baseline.values
    facts = [
        (
            "surface",
            f"{surface.name}: {surface.num_actions} actions, objectives {', '.join(surface.objectives)}",
        ),
        ("data window", f"{instant(window.start)} to {instant(window.end)} UTC ({share})"),
        ("rows", f"{window.rows:,}{rejected}, from {window.logs}"),
        ("hits", f"{_range(hits)} rows per point"),
        ("estimator", estimator.formula),
        ("how", estimator.details),
        ("intervals", f"{100 * estimator.confidence:g} %, {estimator.interval}{resamples}; lifts are paired"),
        ("all at once", _bands(frontier)),
        ("production", frontier.production.note),
        ("production's values", ", ".join(f"{name} {_value(value)}" for name, value in values.items())),
        ("hypervolume", _hypervolume(frontier)),
        *(("warning", warning) for warning in frontier.warnings),
    ]
    return header(
        f"Frontier of run {frontier.run.run_id}", judged.level, _HEADLINES[judged.level], judged.text, facts
    )


_HEADLINES = {
    "better": "Some points beat production.",
    "trade-off": "A trade-off.",
    "nothing": "Not yet.",
}


def _bands(frontier: Frontier) -> str:
    estimator = frontier.estimator
    if estimator.critical is None or estimator.looks is None:
        return ""
    return (
        f"bands of ± {estimator.critical:.2f} standard deviations hold for all {estimator.looks:,} lifts of "
        "everybody's points together; candidates are chosen by their lower ends"
    )


def _hypervolume(frontier: Frontier) -> str:
    baseline = frontier.production.estimate(None)
    if baseline is None or baseline.hypervolume is None:
        return ""
    objectives = len(frontier.surface_object.objectives)
    unit = (
        "%" if objectives == 1 else f"%{'²³⁴⁵⁶⁷⁸⁹'[objectives - 2] if objectives < 10 else f'^{objectives}'}"
    )
    volume = baseline.hypervolume * 100.0**objectives
    return f"{volume:.3g} {unit} of lift between production and the frontier (point estimates)"


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


# --------------------------------------------------------------------------------------- sections


_LEGEND = (
    '<ul class="legend"><li><i class="key candidate"></i>candidate</li><li><i class="key front"></i>on the '
    'frontier</li><li><i class="key pale"></i>dominated</li><li><i class="key static"></i>matched static: '
    'the same mean weights for everybody</li><li><i class="key production"></i>production</li></ul>'
)


_BETWEEN = (
    '<p class="note"><i class="key extrapolated"></i>extrapolated: the same network choosing among weights '
    "between those explored. No log holds such weights: their values assume that rewards between two grid "
    "points lie on a smooth curve. They are never candidates, and the served model does not choose them; to "
    "use them, explore a finer grid and fit again.</p>"
)


def _scatter(frontier: Frontier) -> str:
    pairs = charts.objective_pairs(frontier)
    if not pairs:
        return ""
    wide = len(pairs) == 1
    size = (680.0, 460.0) if wide else (430.0, 330.0)
    pictures = [
        figure(charts.scatter(frontier, pair, f"scatter{i}", size=size), "wide" if wide else "")
        for i, pair in enumerate(pairs)
    ]
    total = len(frontier.surface_object.objectives)
    more = "" if total * (total - 1) // 2 <= len(pairs) else f" The first {len(pairs)} pairs are shown."
    note = (
        "Up and to the right is better. Whiskers are bands of the lifts that hold all at once; those "
        f"that leave the frame are cut off, the tables hold the figures.{more}"
    )
    if not wide:
        note += " A point may look dominated in one panel and not be, in all objectives together."
    legend = _LEGEND + (_BETWEEN if any(point.extrapolated for point in frontier.points) else "")
    return section("Operating points against production", legend + grid(pictures), note)


def _candidates(frontier: Frontier) -> str:
    rows: list[tuple[str, bool, Estimate, str]] = []
    for index, labels in charts.labels_by_point(frontier).items():
        point = frontier.points[index]
        same = [candidate for candidate in frontier.candidates.values() if candidate.point == index]
        why = "; ".join(candidate.reason for candidate in same)
        rows.append((labels, False, point, f"{charts.scalarization_text(point)}: {why}"))
        if same[0].matched_static is not None:
            rows.append(("matched static", True, same[0].matched_static, "same mean weights for everybody"))
    if not rows:
        return section("Candidates", "<p>The logs value no operating point on every objective.</p>")
    figures_table = table(
        ["candidate", *_columns(frontier)],
        [
            ([f"{name}\n{why}", *_cells(frontier, estimate)], "quiet" if static else "")
            for name, static, estimate, why in rows
        ],
    )
    names = [name for name, *_ in rows]
    forests = [
        figure(
            charts.forest(
                objective,
                f"forest{m}",
                [
                    (label, static, estimate.lifts[objective], estimate.bands()[objective])
                    for label, static, estimate, _ in rows
                ],
                lambda i: charts.describe(frontier, rows[i][2], names[i]),
            )
        )
        for m, objective in enumerate(frontier.surface_object.objectives)
    ]
    note = (
        "A candidate is worth more than its matched static weights (the same means given to everybody) only "
        "where it lies clearly to their right: otherwise the gain is retuning, not personalization. The best "
        "of many points looks better than it is."
    )
    return section("Candidates for a test", grid(forests) + figures_table, note)


def _curves(frontier: Frontier) -> str:
    surface = frontier.surface_object
    if len(surface.objectives) != 2:
        return ""
    points = frontier.points_of(None)
    figures = []
    for i, name in enumerate(surface.objectives):
        series: dict[str, charts.Series] = {name: charts.lift_series(points, name)}
        outer = charts.lift_series(points, name, together=True)
        figures.append(_curve(frontier, f"lift{i}", name, "lift, %", series, outer))
    for i, name in enumerate(surface.metrics):
        series = {name: charts.metric_series(points, name)}
        if any(y is not None for _, y, _ in series[name]):
            outer = charts.metric_series(points, name, together=True)
            figures.append(_curve(frontier, f"metric{i}", f"{name} (guardrail)", "lift, %", series, outer))
    for i, weight in enumerate(surface.controlled):
        figures.append(
            figure(
                charts.curve(
                    frontier,
                    f"weight{i}",
                    title=f"mean weight of {weight.head}",
                    y_title="mean weight",
                    series={weight.head: charts.weight_series(points, weight.head)},
                    reference=(weight.production, f"production {weight.production:.4g}"),
                )
            )
        )
    return section(
        "Along α",
        grid(figures),
        "Lines are estimates; the inner band is for one look, the outer one for all at once.",
    )


def _curve(
    frontier: Frontier,
    identity: str,
    title: str,
    y_title: str,
    series: dict[str, charts.Series],
    outer: charts.Series = (),
) -> str:
    bands = len(series) == 1
    return figure(
        charts.curve(
            frontier,
            identity,
            title=title,
            y_title=y_title,
            series=series,
            signed=True,
            bands=bands,
            outer=outer,
        )
    )


def _cohorts(frontier: Frontier) -> str:
    cohorts = list(dict.fromkeys(point.cohort for point in frontier.points if point.cohort is not None))
    pairs = charts.objective_pairs(frontier)
    if not cohorts:
        return ""
    figures: list[str] = []
    if len(frontier.surface_object.objectives) == 2:
        for i, name in enumerate(frontier.surface_object.objectives):
            series = {cohort: charts.lift_series(frontier.points_of(cohort), name) for cohort in cohorts}
            figures.append(_curve(frontier, f"response{i}", f"{name} by cohort", "lift, %", series))
        axes = charts.scatter_axes(frontier, pairs[0], [p for p in frontier.points if p.cohort is not None])
        figures += [
            figure(
                charts.scatter(frontier, pairs[0], f"cohort{i}", cohort=cohort, size=(430, 330), axes=axes)
            )
            for i, cohort in enumerate(cohorts)
        ]
    note = "Each cohort against production in the same cohort; the scatter panels share their axes."
    return section(
        "By cohort", grid(figures) if figures else "<p>The table below has a row for each.</p>", note
    )


def _points(frontier: Frontier) -> str:
    labels = charts.labels_by_point(frontier)
    body = []
    for index, point in enumerate(frontier.points):
        thin = " (few)" if not point.extrapolated and point.hits < MINIMUM_HITS else ""
        cells = _cells(frontier, point)
        cells[-1] += thin
        name = labels.get(index, "")
        where = "dominated" if point.dominated else "frontier"
        where = f"extrapolated\n{where}" if point.extrapolated else where
        where += "\n" + name if name else ""
        body.append(
            (
                [charts.scalarization_text(point), point.cohort or "everybody", *cells, where],
                "quiet" if point.dominated or point.extrapolated else "",
            )
        )
    figures_table = table(["λ", "cohort", *_columns(frontier), "place"], body)
    return section(
        "All points", f"<details open><summary>{len(body)} rows</summary>{figures_table}</details>"
    )


def _columns(frontier: Frontier) -> list[str]:
    surface = frontier.surface_object
    return [
        *(f"{name} lift" for name in surface.objectives),
        *(f"{name} lift (guardrail)" for name in surface.metrics),
        *(f"mean {head}" for head in surface.controlled_heads),
        "effective sample",
        "hits",
    ]


def _cells(frontier: Frontier, estimate: Estimate) -> list[str]:
    surface = frontier.surface_object
    metrics = [estimate.metrics[name] for name in surface.metrics]
    return [
        *(charts.percent(estimate.lifts[name], estimate.bands()[name]) for name in surface.objectives),
        *(charts.percent(metric.lift, metric.simultaneous or metric.interval) for metric in metrics),
        *(f"{estimate.mean_weights[head]:.4g}" for head in surface.controlled_heads),
        f"{estimate.effective_sample_size:,.0f}",
        f"{estimate.hits:,}",
    ]


def _reading(frontier: Frontier) -> str:
    looks = len(frontier.points_of(None))
    items = [
        "A lift is the relative difference from production's estimate on the same rows (Eq. 10 of arXiv "
        "2605.16344); λ weighs the objectives in the policy's choice.",
        f"This page shows {looks} points of one sample. The figures in brackets are bands that hold for all "
        "of them at once; the darker band of a curve is the interval for one look.",
        "Hits are rows whose logged action the policy would have taken; only they say anything about it. The "
        "effective sample is (Σ w)² / Σ w² of their weights.",
        "Estimates are for the logged window and ranker; a new ranker needs new logs.",
    ]
    identity = (
        f"run {frontier.run.run_id}, code {frontier.run.code_version}, surface "
        f"{frontier.surface_object.name} {frontier.run.surface_fingerprint[:12]}, "
        f"frontier {frontier.fingerprint[:12]}"
    )
    body = f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
    return section("How to read this", body + f'<p class="note">{escape(identity)}</p>')
