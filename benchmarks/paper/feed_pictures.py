"""Pictures of the feed, of the chosen weights and of the feature groups."""

from __future__ import annotations

from html import escape

import numpy as np

from benchmarks.paper.feed_figures import MOST
from benchmarks.paper.parts import Part
from benchmarks.paper.summary import Summary
from ray_train import svg
from ray_train.svg import Axis, Plot

BAR = 0.36
"""Width of one bar of a pair, in engagements."""


def bar(plot: Plot, x: tuple[float, float], y: tuple[float, float], kind: str, tip: str) -> None:
    """A filled rectangle in data units, with a tooltip."""
    (left, right), (low, high) = ((plot.x(v) for v in x), (plot.y(v) for v in y))
    body = f"{left:.1f},{low:.1f} {right:.1f},{low:.1f} {right:.1f},{high:.1f} {left:.1f},{high:.1f}"
    plot.add(
        f'<polygon class="bar {kind}" points="{body}" data-tip="1"><title>{escape(tip)}</title></polygon>'
    )


def engagement(feed: Part, identity: str) -> str:
    """Requests by their number of engagements, a colour a kind."""
    kinds = [name for name in feed["engagement"] if "+" not in name]
    highest = max(max(feed["engagement"][kind]) for kind in kinds)
    few = {kind: 100 * sum(feed["engagement"][kind][:2]) for kind in kinds}
    plot = Plot(
        430,
        332,
        Axis(-0.6, MOST + 0.6, f"engagements of a request ({MOST}: or more)"),
        Axis(0, 108 * highest, "share of requests, %"),
        label="Share of requests by number of engagements, for each kind",
        title="Engagements per request, production weights",
        margin=(30, 16, 46, 58),
        legend=[(f"{kind}: at most one in {few[kind]:.1f} %", f"c{i}") for i, kind in enumerate(kinds)],
    )
    for number, kind in enumerate(kinds):
        for count, share in enumerate(feed["engagement"][kind]):
            left = count + (number - len(kinds) / 2) * BAR
            tip = f"{kind}: {count}{'+' if count == MOST else ''} in {100 * share:.1f} % of the requests"
            bar(plot, (left, left + BAR), (0, 100 * share), f"c{number}", tip)
    return plot.render(identity)


def contributions(feed: Part, identity: str) -> str:
    """Eq. 11 for every head, under production weights."""
    heads, found = feed["heads"], feed["contribution"]["production"]
    plot = Plot(
        430,
        60 + 32 * len(heads),
        Axis(0, 112 * max(found), "share of the utility, %"),
        Axis(0, len(heads), ""),
        label="Head contributions to production's utility",
        title="Head contributions, production weights",
        margin=(30, 16, 46, 70),
        y_ticks=False,
    )
    for h, (head, share) in enumerate(zip(heads, found, strict=True)):
        middle = len(heads) - h - 0.5
        bar(
            plot,
            (0, 100 * share),
            (middle - 0.34, middle + 0.34),
            "c0" if h < 2 else "pale",
            f"{head}: {100 * share:.1f} %",
        )
        plot.write(svg.text(plot.frame[0] - 8, plot.y(middle) + 4, head, "label", "end"))
        plot.write(svg.text(plot.x(100 * share) + 5, plot.y(middle) + 4, f"{100 * share:.1f}", "label quiet"))
    return plot.render(identity)


def weight_range(feed: Part, head: str, identity: str, production: float) -> str:
    """The head's share of the utility as its weight goes over its range."""
    found = feed["contribution"]["ranges"][head]
    weight, share = found["weight"], [100 * value for value in found["share"]]
    pad = 0.02 * (weight[-1] - weight[0])
    plot = Plot(
        430,
        260,
        Axis(weight[0] - pad, weight[-1] + pad, f"{head} weight, the other one at production"),
        Axis(0, 1.1 * max(share), f"share of {head} in the utility, %"),
        label=f"Share of the {head} head against its weight",
        title=f"{head}: from {share[0]:.1f} to {share[-1]:.1f} %",
        margin=(30, 16, 46, 58),
    )
    spots = [(plot.x(w), plot.y(s)) for w, s in zip(weight, share, strict=True)]
    plot.add(svg.path(spots, "curve c0"))
    for spot, w, s in zip(spots, weight, share, strict=True):
        plot.add(svg.circle(*spot, 3, "dot c0", f"weight {w:.1f}: {s:.1f} %"))
    top, bottom = plot.frame[1], plot.frame[3]
    plot.add(svg.line(plot.x(production), top, plot.x(production), bottom, "reference"))
    plot.write(svg.text(plot.x(production) + 5, bottom - 8, f"production {production:g}", "label quiet"))
    return plot.render(identity)


def chosen_weights(part: Part, w: int, identity: str) -> str:
    """Share of the requests that get each weight, by α: the darker the more."""
    head = list(part["weights"])[w]
    levels, alphas = part["weights"][head], part["alphas"]
    share_PL = _shares(part, w)
    step = (alphas[-1] - alphas[0]) / (len(alphas) - 1)
    plot = Plot(
        430,
        300,
        Axis(alphas[0] - step / 2, alphas[-1] + step / 2, "α"),
        Axis(-0.5, len(levels) - 0.5, f"{head} weight"),
        label=f"Distribution of the chosen {head} weight by α",
        title=f"Chosen {head} weight: share of the requests",
        margin=(30, 16, 46, 58),
        y_ticks=False,
    )
    for level, weight in enumerate(levels):
        plot.write(svg.text(plot.frame[0] - 7, plot.y(level) + 4, f"{weight:.3g}", "tick", "end"))
        for p, alpha in enumerate(alphas):
            share = share_PL[p, level]
            if share >= 0.002:
                # Rounded before the width is taken: neighbours must share an edge.
                left, right = (round(plot.x(alpha + side * step / 2), 1) for side in (-1, 1))
                top, low = plot.y(level + 0.5), plot.y(level - 0.5)
                tip = f"α = {alpha:.2f}: weight {weight:.3g} in {100 * share:.1f} % of the requests"
                plot.add(
                    f'<rect class="c0" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                    f'height="{low - top:.1f}" fill-opacity="{share**0.5:.3f}" '
                    f'shape-rendering="crispEdges" data-tip="1">'
                    f"<title>{escape(tip)}</title></rect>"
                )
    mean = [float(share @ np.arange(len(levels))) for share in share_PL]
    plot.add(svg.path([(plot.x(a), plot.y(v)) for a, v in zip(alphas, mean, strict=True)], "curve c1"))
    return plot.render(identity)


def _shares(part: Part, w: int) -> np.ndarray:  # type: ignore[type-arg]
    """Share of each level of controlled weight ``w``, [P, levels]."""
    head = list(part["weights"])[w]
    weight_A = np.array(part["actions"])[:, w]
    chosen_PA = np.array(part["chosen"], dtype=np.float64)
    level_PL = np.stack(
        [chosen_PA[:, np.isclose(weight_A, level)].sum(axis=1) for level in part["weights"][head]], axis=1
    )
    return np.asarray(level_PL / level_PL.sum(axis=1, keepdims=True))


def ablation(summary: Summary, identity: str) -> str:
    """Captured share by feature group: bars are means, dots worlds, whiskers Student's intervals."""
    groups = list(summary.ablation.items())
    ends = [bound for _, mean in groups for bound in (mean.interval or (mean.value, mean.value))]
    worlds = [value for _, mean in groups for value in mean.worlds]
    plot = Plot(
        640,
        60 + 44 * len(groups),
        Axis.around([0.0, *worlds], ends, title="captured share of the personalization gain", signed=True),
        Axis(0, len(groups), ""),
        label="Captured share by feature group",
        title="One feature group in, all else equal",
        margin=(30, 16, 46, 80),
        y_ticks=False,
    )
    for number, (group, mean) in enumerate(groups):
        middle = len(groups) - number - 0.5
        bar(plot, (0, mean.value), (middle - 0.3, middle + 0.3), f"c{number}", f"{group}: {mean.value:+.3f}")
        if mean.interval:
            plot.add(
                svg.line(
                    plot.x(mean.interval[0]),
                    plot.y(middle),
                    plot.x(mean.interval[1]),
                    plot.y(middle),
                    "whisker strong",
                )
            )
        for seed, value in zip(summary.seeds, mean.worlds, strict=False):
            plot.add(
                svg.circle(
                    plot.x(value), plot.y(middle), 3.5, "production", f"{group}, seed {seed}: {value:+.3f}"
                )
            )
        plot.write(svg.text(plot.frame[0] - 8, plot.y(middle) + 4, group, "label", "end"))
    return plot.render(identity)
