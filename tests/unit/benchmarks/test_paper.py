"""``benchmarks paper``: parts, operating points, A/B sums, correlation and sentences, on hand-made cases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.paper.correlation import near, online_interval, over_worlds, pearson
from benchmarks.paper.feed_figures import shares
from benchmarks.paper.findings import findings
from benchmarks.paper.logged import only
from benchmarks.paper.online import UserSums, ab_sums, ab_tests, treated, truth
from benchmarks.paper.over_seeds import mean_with_interval
from benchmarks.paper.parts import part
from benchmarks.paper.points import nulls
from benchmarks.paper.report import write_report
from benchmarks.paper.settings import PaperSettings, operating_points
from benchmarks.paper.sizes import read_run
from benchmarks.paper.summary import Summary, summarize
from triton_models.errors import BenchmarkError

POINTS = 9
ALPHAS = [0.1 + 0.02 * p for p in range(POINTS)]
LABELS = {"repin-leaning": 2, "balanced": 4, "p2p-leaning": 6}


# -------------------------------------------------------------------------------------------- parts


def test_a_part_is_made_once_and_not_mixed_with_other_settings(tmp_path: Path) -> None:
    file = tmp_path / "parts" / "one.json"
    made = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": 7}

    assert part(file, {"rows": 5}, make) == ({"made_with": {"rows": 5}, "value": 7}, True)
    assert part(file, {"rows": 5}, make)[1] is False and len(made) == 1
    with pytest.raises(BenchmarkError, match="another rows"):
        part(file, {"rows": 6}, make)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(BenchmarkError, match="remove it"):
        part(file, {"rows": 5}, make)


def test_an_ablation_setting_does_not_make_the_sweep_again() -> None:
    one, two = (PaperSettings(seeds=(1,), ablation_requests=rows) for rows in (5000, 6000))
    assert one.identity("points") == two.identity("points")
    assert one.identity("ablation") != two.identity("ablation")


@pytest.mark.parametrize("wrong", [{"seeds": ()}, {"seeds": (1, 1)}, {"learner": "oracle"}, {"points": 3}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        PaperSettings.model_validate({"seeds": (1,), **wrong})


# --------------------------------------------------------------------------------- operating points


def test_the_balanced_point_has_the_largest_minimum() -> None:
    repin = np.linspace(0.08, -0.08, POINTS)
    lift_PM = np.stack([repin, -repin + 0.02], axis=1)
    # min(0.08 - 0.02 p, -0.06 + 0.02 p) is largest where they cross, between p = 3 and 4
    assert operating_points(lift_PM)["balanced"] in (3, 4)
    chosen = operating_points(np.stack([repin, np.full(POINTS, -0.5)], axis=1))
    assert chosen == {"repin-leaning": 0, "balanced": 2, "p2p-leaning": 4}  # kept off the edge


def test_near_is_cut_at_the_ends() -> None:
    assert near({"balanced": 1}, 25).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(near({"balanced": 12}, 25)) == 11


# -------------------------------------------------------------------------------------- correlation


def test_pearson_by_hand() -> None:
    # deviations (-1, 0, 1) and (-2, 1, 1): 3 / sqrt(2 · 6)
    assert pearson([1, 2, 3], [0, 3, 3]) == pytest.approx(3 / math.sqrt(12))
    assert math.isnan(pearson([1, 1, 1], [0, 3, 3]))
    assert pearson([1, 2, math.nan, 3], [2, 4, 9, 6]) == pytest.approx(1.0)


def test_worlds_are_averaged_in_z() -> None:
    mean, bounds = over_worlds([0.9, 0.99])
    assert mean == pytest.approx(math.tanh((math.atanh(0.9) + math.atanh(0.99)) / 2))
    assert bounds is not None and bounds[0] < mean < bounds[1] <= 1.0
    assert over_worlds([0.5]) == (pytest.approx(0.5), None)


def test_student_by_hand() -> None:
    # sd of 1, 2, 3 is 1, t with 2 degrees of freedom 4.303
    mean, bounds = mean_with_interval([1.0, 2.0, 3.0, math.nan])
    assert mean == 2.0 and bounds == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    assert mean_with_interval([4.0]) == (4.0, None)


def made_up_sums(*, users: int = 4000, policies: int = 6, seed: int = 3) -> UserSums:
    """Users of 5 requests; policy p lifts the chance 0.4 by 0.05 p."""
    rng = np.random.default_rng(seed)
    chance_P = 0.4 * (1 + 0.05 * np.arange(policies))
    expected = np.broadcast_to(5 * chance_P[None, :, None], (users, policies, 1))
    return UserSums(
        requests_U=np.full(users, 5.0),
        cohort_U=np.zeros(users, dtype=np.intp),
        sampled_UPR=rng.binomial(5, np.broadcast_to(chance_P[None, :, None], expected.shape)).astype(float),
        expected_UPR=np.array(expected),
        action_PA=np.zeros((policies - 1, 2), dtype=np.int64),
        seed=seed,
    )


def test_ab_tests_find_the_lifts_and_truth_has_them_exactly() -> None:
    sums = made_up_sums()
    treated_PU = np.stack([treated(3, p, 4000) for p in range(5)])
    assert (np.abs(treated_PU.mean(axis=1) - 0.5) < 0.03).all()
    assert not (treated_PU[0] == treated_PU[1]).all()  # every test splits anew
    exact = truth(sums)
    np.testing.assert_allclose(exact.lift_PR[:, 0], 0.05 * np.arange(1, 6), rtol=1e-9)
    against = truth(sums, baseline=2)
    np.testing.assert_allclose(against.lift_PR[2, 0], 1.15 / 1.10 - 1, rtol=1e-9)
    sum_UP2R2 = ab_sums(sums, treated_PU)
    assert (sum_UP2R2[:, :, 0] * sum_UP2R2[:, :, 1] == 0).all()  # nobody is in both arms
    found = ab_tests(sum_UP2R2)
    assert np.abs(found.lift_PR - exact.lift_PR).max() < 0.06  # standard error 0.017
    low, high = online_interval(exact.lift_PR, sum_UP2R2, seed=1, resamples=100)[0]
    assert low < pearson(exact.lift_PR[:, 0], found.lift_PR[:, 0]) < high


def test_ab_intervals_cover() -> None:
    held = []
    for seed in range(100):
        sums = made_up_sums(users=300, policies=2, seed=seed)
        found = ab_tests(ab_sums(sums, treated(seed, 0, 300)[None]))
        low, high = found.interval_PR2[0, 0]
        held.append(low < 0.05 < high)
    assert np.mean(held) >= 0.89  # nominal 95 %, binomial error 2.2 points


# --------------------------------------------------------------------------------------------- feed


def test_engagement_shares_by_hand() -> None:
    assert shares(np.array([0, 0, 1, 2, 7]), most=3).tolist() == [0.4, 0.2, 0.2, 0.2]


def test_one_group_in_leaves_the_others_unknown() -> None:
    names = ("user_embedding", "history_embedding", "history_action", "history_age_s", "context", "action")
    rows = {name: np.ones(3) for name in names}
    assert [name for name, array in only("history", rows).items() if array.any()] == [*names[1:4], "action"]
    assert only("all", rows) is rows
    assert only("context", rows)["context"].all() and not only("context", rows)["user_embedding"].any()


def test_nan_becomes_null() -> None:
    assert nulls(np.array([[1.0, math.nan]])) == [[1.0, None]]


# ----------------------------------------------------------------------------------- the sentences


def made_up_part(seed: int, *, sign: float = 1.0) -> dict[str, Any]:
    """One world in the paper's shape; ``sign`` -1 turns all effects round."""
    alpha = np.array(ALPHAS) - ALPHAS[4]
    base = np.stack([0.01 - alpha, 0.01 + alpha, alpha / 2, 0 * alpha], axis=1) * sign + 1e-4 * seed
    group = {
        side: {"lift": base.tolist(), "interval": np.stack([base - 0.01, base + 0.01], axis=-1).tolist()}
        for side in ("offline", "online", "truth")
    }
    scales = {"core": 0.1, "casual": 2.0, "rest": 1.0}
    cohorts = {
        name: {
            side: {**group[side], "lift": (np.array(group[side]["lift"]) * scale).tolist()} for side in group
        }
        | {"share": 1 / 3}
        for name, scale in scales.items()
    }
    policy = {"lift": (0.01 * sign * np.ones(4)).tolist(), "interval": [[0.0, 0.02]] * 4}
    correlation = {
        "points": POINTS,
        "online": [0.99, 0.99],
        "online_interval": [[0.9, 1.0]] * 2,
        "truth": [0.99, 0.99],
        "tests": [0.98, 0.97],
        "error": [0.01, 0.01],
    }
    return {
        "seed": seed,
        "outcomes": ["repin", "p2p", "successful_session", "hide"],
        "objectives": ["repin", "p2p"],
        "alphas": ALPHAS,
        "labels": LABELS,
        "groups": {"everybody": group, **cohorts},
        "matched_static": {
            label: {
                "weights": {"repin": 90.0 - p, "p2p": 9.0 + p},
                "online": policy,
                "truth": policy,
                "personalized_over_static": policy,
            }
            for label, p in LABELS.items()
        },
        "weights": {"repin": [10.0, 200.0], "p2p": [1.0, 30.0]},
        "actions": [[10.0, 1.0], [10.0, 30.0], [200.0, 1.0], [200.0, 30.0]],
        "chosen": [[1, 2, 3, 4]] * POINTS,
        "correlation": dict.fromkeys(("sweep", "near", "tested"), correlation),
        "holdout_rows": 1000,
        "estimator": "projection_dr",
    }


def made_up_feed(seed: int) -> dict[str, Any]:
    curve = {"weight": [1.0, 30.0], "share": [0.005, 0.48]}
    return {
        "seed": seed,
        "engagement": {"repin": [0.8, 0.15, 0.05], "p2p": [0.7, 0.2, 0.1]},
        "heads": ["repin", "p2p", "click"],
        "production": {"repin": 91.6, "p2p": 9.1},
        "contribution": {"production": [0.7, 0.19, 0.11], "ranges": {"repin": curve, "p2p": curve}},
    }


def made_up_ablations(seed: int) -> list[dict[str, Any]]:
    captured = {"all": 0.6, "user": 0.4, "history": 0.35, "context": 0.02}
    return [{"seed": seed, "group": group, "captured": [value]} for group, value in captured.items()]


def made_up(sign: float = 1.0) -> tuple[list[Any], list[Any], list[Any]]:
    seeds = (1, 2)
    return (
        [made_up_part(seed, sign=sign) for seed in seeds],
        [made_up_feed(seed) for seed in seeds],
        [item for seed in seeds for item in made_up_ablations(seed)],
    )


def verdicts(summary: Summary) -> dict[str, str]:
    return {finding.item: finding.verdict for finding in findings(summary)}


def test_a_world_of_the_papers_shape_reproduces_it_and_its_opposite_does_not() -> None:
    found = verdicts(summarize(*made_up()))
    assert set(found.values()) == {"reproduced", "nothing to compare"}
    turned = verdicts(summarize(*made_up(-1.0)))
    assert turned["Table 1, operating points"] == "not reproduced"
    assert turned["Table 3, matched static weights"] == "not reproduced"
    assert turned["Figure 1, frontier"] == "not reproduced"


@pytest.mark.parametrize(("context", "verdict"), [(0.02, "partly"), (0.4, "not reproduced")])
def test_a_feature_group_that_helps_most_alone_must_be_the_user(context: float, verdict: str) -> None:
    points, feeds, ablations = made_up()
    for one in ablations:
        one["captured"] = [{"all": 0.6, "user": 0.1, "history": 0.5, "context": context}[one["group"]]]
    assert verdicts(summarize(points, feeds, ablations))["Feature groups in isolation"] == verdict


def test_the_report_shows_the_papers_figures_beside_ours(tmp_path: Path) -> None:
    text = write_report(tmp_path, PaperSettings(seeds=(1, 2)), *made_up())
    assert "| paper | 0.17 | +2.77 | +2.26 |" in text and "p2p 11.83" in text and "0.986" in text
    page = (tmp_path / "paper.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 15 and "nan" not in page.lower().replace("nano", "")
    data = json.loads((tmp_path / "paper.json").read_text(encoding="utf-8"))
    assert data["correlation"]["sweep / online / repin"]["mean"] == pytest.approx(0.99)
    assert data["findings"][0]["verdict"] == "reproduced"


def test_how_many_points_lie_near_the_balanced_one_is_said_as_a_range(tmp_path: Path) -> None:
    points = [made_up_part(seed) for seed in (1, 2, 3)]
    for world, count in zip(points, (10, 9, 11), strict=True):
        world["correlation"]["near"] = {**world["correlation"]["near"], "points": count}
    text = write_report(tmp_path, PaperSettings(seeds=(1, 2, 3)), points, *made_up()[1:])
    assert "| 9 to 11 | repin |" in text and f"| {POINTS} | repin |" in text


def test_a_run_with_more_traffic_is_shown_beside(tmp_path: Path) -> None:
    write_report(tmp_path / "small", PaperSettings(seeds=(1, 2)), *made_up())
    large = PaperSettings(seeds=(1, 2), requests=1_000_000, users=100_000)
    text = write_report(tmp_path / "large", large, *made_up(), [read_run(tmp_path / "small")])
    rows = [line.split(" | ") for line in text.splitlines() if "00,000 (" in line]
    assert [row[0] for row in rows] == ["| 200,000 (20,000)"] * 4 + ["| 1,000,000 (100,000)"] * 4
    # repin over the whole sweep: offline and A/B, offline and truth, A/B and truth
    assert rows[0][2:] == [
        "the whole sweep",
        "repin",
        *(f"{r} [{r},\u00a0{r}]" for r in ("0.9900", "0.9900")),
        "0.9800 [0.9800,\u00a00.9800] |",
    ]
    assert "(100,000)" in (tmp_path / "large" / "paper.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, "{", '{"settings": {}}'])
def test_what_is_no_run_is_not_shown_beside(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "paper.json").write_text(content, encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"paper\.json"):
        read_run(tmp_path)
