"""``paper.html``, ``paper.md`` and ``paper.json`` of all parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.paper import feed_pictures, pictures, tables
from benchmarks.paper.findings import Finding, findings
from benchmarks.paper.parts import Part
from benchmarks.paper.settings import PaperSettings
from benchmarks.paper.sizes import RunOfSize, by_size
from benchmarks.paper.summary import Summary, summarize
from triton_models.files import write_atomically, write_json

Block = tuple[str, list[str], list[str], str]
"""Title, pictures, tables (each a string of Markdown lines), note."""

STYLE = (
    "<style>li.part{color:var(--warn)}li .said{font-weight:400;color:var(--ink)}li{margin:0 0 6px}"
    "figure.wide svg{max-width:900px}th,td{padding:4px 6px}td:last-child{min-width:0}"
    "table{font-size:12px}</style>"
)
ABOUT = (
    "The paper: Zhou et al., A Production-Ready RL Framework for Personalized Utility Tuning with Pareto "
    "Sweeping in Pinterest Recommender Systems, arXiv 2605.16344. Its figures are those that DESIGN.md "
    "states; figures of the paper are called by their content where their number is not known. Ours are "
    "from a simulated feed whose truth is known, so sizes of effects are the feed's own."
)


def write_report(
    folder: Path,
    settings: PaperSettings,
    points: list[Part],
    feeds: list[Part],
    ablations: list[Part],
    beside: Sequence[RunOfSize] = (),
) -> str:
    """Write the three files; runs of other sizes are shown beside this one's correlations.

    Returns:
        The Markdown.
    """
    summary = summarize(points, feeds, ablations)
    found = findings(summary)
    data = _json(settings, summary, found)
    sizes = by_size([RunOfSize.model_validate(data), *beside], summary.objectives) if beside else []
    blocks = _blocks(summary, points, feeds[0], sizes)
    about = _settings_line(settings, points)
    text = _markdown(found, blocks, about)
    write_atomically(folder / "paper.md", text)
    write_atomically(folder / "paper.html", _page(found, blocks, about))
    write_json(folder / "paper.json", data)
    return text


def _settings_line(settings: PaperSettings, points: Sequence[Part]) -> str:
    seeds = ", ".join(str(part["seed"]) for part in points)
    return (
        f"Worlds (seeds) {seeds}; each with {settings.requests:,} logged requests explored uniformly, of "
        f"which {settings.train_rows:,} train ({settings.learner}) and {points[0]['holdout_rows']:,} are the "
        f"hold-out ({points[0]['estimator']}); {settings.test_requests:,} new requests for each A/B test; "
        f"{settings.users:,} users. "
        "Intervals in brackets are 95 %: by user in one world, Student's over worlds where it says means. "
        "Lifts in % over production. A/B: half of the users each, sampled engagement; truth: the feed's own "
        "expectation of what was served, on the same requests as production."
    )


def _blocks(summary: Summary, points: list[Part], feed: Part, sizes: list[str]) -> list[Block]:
    first = points[0]
    return [
        (
            "Table 1: operating points",
            [],
            ["\n".join(tables.table_1_means(summary)), "\n".join(tables.table_1(first))],
            f"Means over worlds beside the paper's row, then seed {first['seed']} by itself. The balanced "
            "point has the largest minimum of the offline lifts; the leaning ones lie 0.04 in α beside it.",
        ),
        (
            "Figure 1: frontier",
            [pictures.frontier(first, "frontier")],
            [],
            "Diamonds: the same average weights for everybody. Offline estimates share the error of "
            "production's own estimate, which moves the whole curve; frontiers/ holds sweep's page of every "
            "world.",
        ),
        (
            "Offline against online",
            [pictures.offline_online(points, m, f"scatter{m}") for m in range(len(summary.objectives))],
            ["\n".join(table) for table in (tables.correlations(summary, points), sizes) if table],
            "Brackets: Student's interval over worlds by way of Fisher's z.",
        ),
        (
            "Table 2: cohorts",
            [pictures.cohort_responses(first, m, f"response{m}") for m in range(len(summary.objectives))],
            ["\n".join(tables.table_2(summary))],
            "Means over worlds.",
        ),
        (
            "Cohort frontiers",
            pictures.cohort_frontiers(first, "cohort"),
            [],
            f"Seed {first['seed']}; the same axes for all. Small cohorts have few hold-out rows.",
        ),
        (
            "Table 3: matched static weights",
            [],
            ["\n".join(tables.table_3(summary))],
            "The policy's own average weights given to everybody: what retuning alone would give. Means "
            "over worlds.",
        ),
        ("Engagement per request", [feed_pictures.engagement(feed, "engagement")], [], ""),
        (
            "Head contributions and weight ranges",
            [
                feed_pictures.contributions(feed, "heads"),
                *(
                    feed_pictures.weight_range(feed, head, f"range{head}", feed["production"][head])
                    for head in feed["contribution"]["ranges"]
                ),
            ],
            [],
            "Eq. 11 over the items that the weights serve.",
        ),
        (
            "Feature groups in isolation",
            [feed_pictures.ablation(summary, "ablation")],
            ["\n".join(tables.ablation(summary))],
            "The same learner and rows, one group in and the others unknown. 0 is the best static vector of "
            "the truth, 1 the best request-level choice; mean over α 0.1 to 0.6. Bars: means, dots: worlds.",
        ),
        (
            "Chosen weights by α",
            [feed_pictures.chosen_weights(first, w, f"chosen{w}") for w in range(len(first["weights"]))],
            [],
            f"Seed {first['seed']}, new requests. The darker the more requests; the curve is the mean level.",
        ),
    ]


def _markdown(found: Sequence[Finding], blocks: Sequence[Block], about: str) -> str:
    lines = ["# The paper's tables and figures in the simulated feed", "", ABOUT, "", about, ""]
    lines += ["| item | shape | |", "|---|---|---|"]
    lines += [f"| {one.item} | {one.verdict} | {one.sentence} |" for one in found]
    for title, _, listed, note in blocks:
        if listed:
            lines += ["", f"## {title}", "", *([note, ""] if note else []), "\n\n".join(listed)]
    return "\n".join(lines) + "\n"


def _page(found: Sequence[Finding], blocks: Sequence[Block], about: str) -> str:
    rows = "".join(
        f"<li{_CLASS.get(one.verdict, '')}><b>{escape(one.item)}: {escape(one.verdict)}.</b> <span "
        f"class='said'>{escape(one.sentence)}</span></li>"
        for one in found
    )
    sections = [pages.section("Is the paper's shape there?", f"{STYLE}<ul>{rows}</ul>")]
    for title, drawn, listed, note in blocks:
        body = (
            pages.figures(drawn, wide=len(drawn) == 1 and 'viewBox="0 0 430' not in drawn[0]) if drawn else ""
        )
        body += "".join(pages.table(table.split("\n")) for table in listed)
        sections.append(pages.section(title, body, note))
    title = "The paper's tables and figures in the simulated feed"
    return pages.page(title, f"{ABOUT} {about}", [], sections)


_CLASS = {"reproduced": " class='held'", "partly": " class='part'", "not reproduced": " class='missed'"}


def _json(settings: PaperSettings, summary: Summary, found: Sequence[Finding]) -> dict[str, Any]:
    return {
        "settings": settings.model_dump(mode="json"),
        "findings": [vars(one) for one in found],
        "lifts": {" / ".join(key): mean.plain() for key, mean in summary.lifts.items()},
        "matched_static": {" / ".join(key): mean.plain() for key, mean in summary.static.items()},
        "correlation": {" / ".join(key): mean.plain() for key, mean in summary.correlation.items()},
        "offline_error": {" / ".join(key): mean.plain() for key, mean in summary.error.items()},
        "cohort_response": {name: mean.plain() for name, mean in summary.response.items()},
        "ablation": {group: mean.plain() for group, mean in summary.ablation.items()},
        "contribution": {head: mean.plain() for head, mean in summary.contribution.items()},
        "weight_range": [mean.plain() for mean in summary.p2p_range],
        "at_most_one_engagement": {kind: mean.plain() for kind, mean in summary.few.items()},
    }
