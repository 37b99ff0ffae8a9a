"""The table and the picture of :mod:`benchmarks.estimator_error.repetitions`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from benchmarks.estimator_error.repetitions import Found
from ray_train.estimators import FloatArray, RewardAtHit
from ray_train.estimators_by_name import UNBIASED
from ray_train.svg import circle, line, text

TARGET_RATIO = 0.5
"""L3: RMSE of a lift against Reward@HIT's on the same rows."""
TARGET_COVERAGE = (0.92, 0.98)
"""Of nominal 95 % intervals, for estimators said to be unbiased."""


def figures(found: Sequence[Found], truth_PM: FloatArray) -> list[dict[str, Any]]:
    """Plain figures, one entry per estimator."""
    reference = next((one for one in found if one.name == RewardAtHit.name), found[0])
    out = []
    for one in found:
        ratio_PM = one.rmse_PM / reference.rmse_PM
        resampled = None if one.bootstrap_KPM is None else one.bootstrap_KPM.mean(axis=0)
        out.append(
            {
                "estimator": one.name,
                "said_to_be_unbiased": one.name in UNBIASED,
                "repetitions": len(one.error_KPM),
                "rmse": one.rmse,
                "rmse_ratio": one.rmse / reference.rmse,
                "rmse_ratio_mean": float(ratio_PM.mean()),
                "rmse_ratio_worst": float(ratio_PM.max()),
                "bias_mean_absolute": float(np.abs(one.bias_PM).mean()),
                "bias_worst": float(np.abs(one.bias_PM).max()),
                "coverage": float(one.coverage_PM.mean()),
                "coverage_lowest": float(one.coverage_PM.min()),
                "coverage_highest": float(one.coverage_PM.max()),
                "coverage_simultaneous": float(one.together_K.mean()),
                "coverage_bootstrap": None if resampled is None else float(resampled.mean()),
                "bias": one.bias_PM.tolist(),
                "rmse_by_point": one.rmse_PM.tolist(),
                "coverage_by_point": one.coverage_PM.tolist(),
                "truth": truth_PM.tolist(),
            }
        )
    return out


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line per estimator; percentages are percentage points of lift."""
    head = (
        "| estimator | said to be unbiased | RMSE, % | RMSE / Reward@HIT's, pooled (mean, worst point) | "
        "bias, % "
        "(mean of absolute, worst) | 95 % intervals cover (lowest, highest point) | all at once | bootstrap |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row["coverage_lowest"], row["coverage_highest"]
        resampled = row["coverage_bootstrap"]
        lines.append(
            f"| {row['estimator']} | {'yes' if row['said_to_be_unbiased'] else 'no'} | "
            f"{100 * row['rmse']:.2f} | "
            f"{row['rmse_ratio']:.2f} ({row['rmse_ratio_mean']:.2f}, {row['rmse_ratio_worst']:.2f}) | "
            f"{100 * row['bias_mean_absolute']:.2f}, {100 * row['bias_worst']:.2f} | "
            f"{100 * row['coverage']:.1f} % ({100 * low:.1f}, {100 * high:.1f}) | "
            f"{100 * row['coverage_simultaneous']:.1f} % | "
            f"{'' if resampled is None else f'{100 * resampled:.1f} %'} |"
        )
    return "\n".join(lines) + "\n"


def as_page(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Coverage over RMSE ratio, one dot per estimator; a self-contained page."""
    picture = _picture(rows)
    table = "".join(
        f"<tr><td>{escape(row['estimator'])}</td><td>{row['rmse_ratio']:.3f}</td>"
        f"<td>{100 * row['coverage']:.1f} %</td><td>{100 * row['bias_worst']:.2f} %</td></tr>"
        for row in rows
    )
    style = (
        "body{font:15px system-ui,sans-serif;margin:2rem auto;max-width:52rem;color:#1a1d21}"
        "svg{max-width:100%}table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left}"
        ".axis{stroke:#8a9099}.target{stroke:#2b7a4b;stroke-dasharray:4 4}.dot{fill:#2f5fb3}"
        ".biased{fill:#c25b2a}.label{font-size:12px}.tick{font-size:11px;fill:#5b626b}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><h1>{escape(title)}</h1>'
        "<p>To the left is better; between the dashed lines nominal 95 % intervals are right. Blue: said to "
        f"be unbiased.</p>{picture}<table><tr><th>estimator</th><th>RMSE / Reward@HIT's</th><th>coverage</th>"
        f"<th>worst bias</th></tr>{table}</table></body></html>\n"
    )


def _picture(rows: Sequence[dict[str, Any]]) -> str:
    left, right, top, bottom = 70.0, 760.0, 20.0, 380.0
    widest = max(1.2, *(row["rmse_ratio"] for row in rows)) * 1.05

    def x(ratio: float) -> float:
        return left + (right - left) * ratio / float(widest)

    def y(coverage: float) -> float:
        return bottom - (bottom - top) * coverage

    marks = [line(left, bottom, right, bottom, "axis"), line(left, top, left, bottom, "axis")]
    marks += [line(left, y(c), right, y(c), "target") for c in TARGET_COVERAGE]
    marks.append(line(x(TARGET_RATIO), top, x(TARGET_RATIO), bottom, "target"))
    marks += [text(x(r), bottom + 18, f"{r:g}", "tick", "middle") for r in np.arange(0, widest, 0.25)]
    marks += [text(left - 8, y(c) + 4, f"{100 * c:g} %", "tick", "end") for c in (0, 0.25, 0.5, 0.75, 1)]
    marks.append(text((left + right) / 2, bottom + 38, "RMSE of a lift / Reward@HIT's", "label", "middle"))
    taken: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: -float(row["coverage"])):
        spot = x(row["rmse_ratio"]), y(row["coverage"])
        marks.append(circle(*spot, 5, "dot" if row["said_to_be_unbiased"] else "biased", row["estimator"]))
        below = spot[1] + 4
        while any(abs(below - other) < 14 and abs(spot[0] - place) < 110 for place, other in taken):
            below += 14
        taken.append((spot[0], below))
        marks.append(text(spot[0] + 9, below, row["estimator"], "label", "start"))
    return f'<svg viewBox="0 0 800 430" role="img" aria-label="coverage over error">{"".join(marks)}</svg>'
