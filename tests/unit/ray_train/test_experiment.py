from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_train import columns
from ray_train.attribution import Attribution, attribute
from ray_train.chi_square import chi_square_tail
from ray_train.experiment import (
    Limit,
    Settings,
    analyse,
    correlation,
    guardrail_verdict,
    sample_ratio,
)
from ray_train.experiment_design import Design
from ray_train.experiment_options import parse_limits, parse_shares
from ray_train.experiment_report import Experiment, load_experiment, write_experiment
from ray_train.experiment_strata import Strata, bins, find_strata
from ray_train.experiment_sums import ExperimentSums, scope_moments, user_sums
from ray_train.experiment_verdict import experiment_verdict
from ray_train.guardrail_reports import report_bodies, reported_arm
from ray_train.intervals import relative_lifts
from ray_train.stratified import StratifiedDelta
from tests.support.experiments import TrueArm, make_experiment
from tests.support.frontiers import frontier_data
from tests.support.logged_decisions import as_decisions
from tests.support.logs import START
from tests.support.surfaces import small_surface
from triton_models.errors import ConfigurationError, SurfaceMismatchError
from triton_models.frontier import Frontier
from triton_models.surface import Surface

SURFACE = small_surface()  # objectives repin and p2p, metric successful_session
RULES = Attribution(as_of=START + timedelta(days=30))
STATIC = TrueArm(name="static", lifts=(0, 0, 0))
KNEE = TrueArm(name="knee", lifts=(0.1, -0.05, 0), scalarization=(0.75, 0.25))


def design(*arms: TrueArm, versions: int = 1, strata: Strata | None = None) -> Design:
    return Design(
        strata=strata or Strata(),
        arms=tuple(arm.name for arm in arms),
        versions=tuple(range(1, versions + 1)),
        cohorts=SURFACE.cohorts,
        choices={
            (arm.name, v, c): frozenset([arm.scalarization] if arm.scalarization else [])
            for arm in arms
            for v in range(1, versions + 1)
            for c in SURFACE.cohorts
        },
        window=(START, START + timedelta(days=7)),
        latest_version=versions,
        frontiers=frozenset(),
        explored=0,
    )


def plan_of(arms: list[TrueArm], decisions: pa.Table, *, versions: int) -> Design:
    """The design, with its times of equal shares found as they are in a log."""
    names = tuple(arm.name for arm in arms)
    binned = pa.table(
        {
            "arm": decisions.column("arm"),
            "version": decisions.column("policy_version"),
            "bin": bins(columns.instants(columns.column(decisions, "timestamp"))),
        }
    )
    rows = binned.group_by(binned.column_names).aggregate([([], "count_all")]).to_pylist()
    counts = {(row["arm"], row["version"], row["bin"]): row["count_all"] for row in rows}
    return design(*arms, versions=versions, strata=find_strata(names, counts))


def sums_of(arms: list[TrueArm], *, parts: int = 1, **world: Any) -> ExperimentSums:
    """What the cluster would give, here, in parts of the users."""
    return planned_sums(arms, parts=parts, **world)[1]


def planned_sums(arms: list[TrueArm], *, parts: int = 1, **world: Any) -> tuple[Design, ExperimentSums]:
    """And the design that was found on the way."""
    decisions, events = make_experiment(SURFACE, arms, **world)
    decisions = as_decisions(SURFACE, decisions)
    decisions = decisions.append_column("position", pa.array(range(decisions.num_rows), pa.int64()))
    events = events.set_column(3, "value", pa.array(np.ones(events.num_rows)))
    found = attribute(SURFACE, RULES, decisions, events)
    plan = plan_of(arms, decisions, versions=world.get("versions", 1))
    users, counts = user_sums(SURFACE, found, plan.strata)
    total = ExperimentSums(decisions=counts, events=found.event_counts)
    number = np.array([int(name[1:]) % parts for name in users.column("user_id").to_pylist()])
    for part in range(parts):
        own = users.filter(pa.array(number == part))
        total.merge(ExperimentSums(scopes=scope_moments(SURFACE, plan, own, 0.95)))
    return plan, total


def experiment(
    arms: list[TrueArm], settings: Settings | None = None, frontier: Frontier | None = None, **world: Any
) -> Experiment:
    plan, sums = planned_sums(arms, **world)
    return analyse(
        surface=SURFACE,
        design=plan,
        sums=sums,
        rules=RULES,
        settings=settings or Settings(),
        frontier=frontier,
        decisions="decisions",
        events="events",
    )


# -------------------------------------------------------------------------------------- lifts


def test_lifts_by_hand() -> None:
    """Three users, weights by 1 / log_probability, one explored request that must not count."""
    rows = [  # user, arm, log_probability, repin, explored
        ("u1", "static", 1.0, 1, False),
        ("u1", "static", 0.5, 0, False),
        ("u2", "knee", 0.25, 1, False),
        ("u2", "knee", 1.0, 0, False),
        ("u3", "knee", 1.0, 0, False),
        ("u3", "knee", 1.0, 1, True),
    ]
    decisions = pa.table(
        {
            "request_id": [f"q{i}" for i in range(len(rows))],
            "timestamp": pa.array([START] * len(rows), pa.timestamp("us", tz="UTC")),
            "position": list(range(len(rows))),
            "user_id": [row[0] for row in rows],
            "arm": [row[1] for row in rows],
            "policy_version": [1] * len(rows),
            "cohort": ["core"] * len(rows),
            "reason": pa.array([None, None, "timeout", None, None, None], pa.string()),
            "log_probability": [row[2] for row in rows],
            "explored": [row[4] for row in rows],
        }
    )
    events = pa.table(
        {
            "request_id": [f"q{i}" for i, row in enumerate(rows) if row[3]],
            "timestamp": pa.array([START] * 3, pa.timestamp("us", tz="UTC")),
            "event": ["repin"] * 3,
            "value": [3.0] * 3,  # clipped: it happened
            "event_id": pa.nulls(3, pa.string()),
        }
    )
    users, counts = user_sums(SURFACE, attribute(SURFACE, RULES, decisions, events), Strata())
    assert +counts == Counter({"analysed": 5, "explored": 1})
    moments = scope_moments(SURFACE, design(STATIC, KNEE), users, 0.95)[None, None]
    value = moments.delta.total_PR2[:, 0, 0] / moments.delta.total_PR2[:, 0, 1]
    assert value.tolist() == pytest.approx([1 / 3, 4 / 6])
    assert moments.users_P.tolist() == [1, 2]
    assert moments.requests_P.tolist() == [2, 3]
    assert moments.fallback_P.tolist() == [0, 4]


def test_a_large_test_finds_the_true_lifts() -> None:
    found = experiment([STATIC, KNEE], users=30_000, sampled=0.5, explored=0.05)
    cell = found.cell("knee")
    assert cell is not None
    for name, lift in zip(found.outcomes, KNEE.lifts, strict=True):
        low, high = cell.effects[name].interval or (1, 0)
        assert low < lift < high
        assert high - low < 0.05
    assert cell.weighted_requests == pytest.approx(2 * cell.requests)
    control = found.cell("static")
    assert control is not None
    assert control.effects["repin"].lift is None


def test_intervals_cover_the_truth_and_an_a_a_test_is_quiet() -> None:
    """200 tests of 300 users, nominal 95 %: fewer than 179 or more than 198 has a chance below 1 in 1,000."""
    same = replace(KNEE, lifts=(0.0, 0.1, 0.0))
    covered = Counter[str]()
    for seed in range(200):
        moments = sums_of([STATIC, same], users=300, seed=5000 + seed, sampled=0.7).scopes[None, None]
        bounds_R2 = moments.delta.bounds()[1]
        covered["a_a"] += bounds_R2[0, 0] <= 0.0 <= bounds_R2[0, 1]
        covered["lift"] += bounds_R2[1, 0] <= 0.1 <= bounds_R2[1, 1]
    assert 179 <= covered["a_a"] <= 198
    assert 179 <= covered["lift"] <= 198


def test_parts_of_the_users_add_up() -> None:
    one, many = (sums_of([STATIC, KNEE], users=300, versions=2, parts=parts) for parts in (1, 4))
    assert one.scopes.keys() == many.scopes.keys()
    for scope, moments in one.scopes.items():
        np.testing.assert_allclose(moments.delta.bounds(), many.scopes[scope].delta.bounds())
        np.testing.assert_array_equal(moments.users_P, many.scopes[scope].users_P)


def test_cohorts_and_versions_have_cells_of_their_own() -> None:
    found = experiment([STATIC, KNEE], users=3000, versions=2, cohort_lifts={"core": -2.0})
    assert found.cohorts == SURFACE.cohorts
    assert found.versions == (1, 2)
    core, casual = (found.cell("knee", 2, cohort) for cohort in ("core", "casual"))
    assert core is not None
    assert casual is not None
    assert (core.effects["repin"].lift or 0) < 0 < (casual.effects["repin"].lift or 0)


def test_fallbacks_stay_in_their_arm_and_are_shown() -> None:
    found = experiment([STATIC, replace(KNEE, fallback=0.3)], users=2000)
    cell, control = found.cell("knee"), found.cell("static")
    assert cell is not None
    assert control is not None
    assert cell.fallback_share == pytest.approx(0.3, abs=0.03)
    assert control.fallback_share == 0.0


def test_requests_with_the_control_off_are_no_fallback_and_dilute_nothing() -> None:
    """Half of the requests come with the control off and have no lift: mixed in, +20 % would be +10 %."""
    limit = Settings(guardrails={"repin": Limit(maximum_lift=0.13)})
    knee = replace(KNEE, lifts=(0.2, 0.0, 0.0), fallback=0.2)
    half = {"users": 20_000, "control_off": 0.5}
    found = experiment([STATIC, knee], limit, **half)
    cell, control = found.cell("knee"), found.cell("static")
    assert cell is not None
    assert control is not None
    low, high = cell.effects["repin"].interval or (1, 0)
    assert 0.13 < low < 0.2 < high < 0.27
    assert [item.verdict for item in found.guardrails] == ["breached"]
    assert (cell.fallback_share, control.fallback_share) == (pytest.approx(0.2, abs=0.02), 0.0)
    assert cell.control_off_share == pytest.approx(0.5, abs=0.02)
    assert control.control_off_share == pytest.approx(0.5, abs=0.02)
    counts = found.decision_counts
    assert counts["analysed"] == cell.requests + control.requests
    assert counts["control_off"] == pytest.approx(counts["analysed"], rel=0.05)


def test_an_arm_with_the_control_off_throughout_is_no_comparison() -> None:
    found = experiment([STATIC, KNEE], users=50, control_off=1.0)
    assert found.cells == ()
    assert set(found.decision_counts) == {"control_off"}


# --------------------------------------------------------------------------- shares that change

RAMP: dict[str, Any] = {"ramp": (0.05, 0.5), "days": 2.0, "rise": 0.1, "explored": 0.02}
"""5 % of the users on the first day, half of them on the second, whose outcomes are 10 % likelier. Pooled, an
arm without any effect has a lift of (1 + 0.1 · 10/11) / (1 + 0.1 · 10/29) - 1 = +5.5 %."""


def test_a_ramp_over_days_of_other_outcomes_is_no_lift() -> None:
    same = replace(KNEE, lifts=(0.0, 0.1, 0.0))
    found = experiment([STATIC, same], users=40_000, **RAMP)
    cell, control = found.cell("knee"), found.cell("static")
    assert cell is not None
    assert control is not None
    pooled = (cell.effects["repin"].value or 0) / (control.effects["repin"].value or 1) - 1
    assert pooled == pytest.approx(0.055, abs=0.01)
    for name, lift in zip(found.outcomes, same.lifts, strict=True):
        low, high = cell.effects[name].interval or (1, 0)
        assert low < lift < high
        assert high - low < 0.04
    assert [t.shares["knee"] for t in found.share_times] == pytest.approx([0.05, 0.5], abs=0.02)
    assert found.share_times[1].start == (START + timedelta(days=1)).isoformat()
    assert found.ramped_versions == (1,)


def test_intervals_over_a_ramp_cover_the_truth() -> None:
    """As without one; 200 tests, nominal 95 %. Users go from one arm to the other, and are in both."""
    same = replace(KNEE, lifts=(0.0, 0.1, 0.0))
    covered = Counter[str]()
    for seed in range(200):
        sums = sums_of([STATIC, same], users=600, seed=7000 + seed, **RAMP)
        bounds_R2 = sums.scopes[None, None].delta.bounds()[1]
        covered["a_a"] += bounds_R2[0, 0] <= 0.0 <= bounds_R2[0, 1]
        covered["lift"] += bounds_R2[1, 0] <= 0.1 <= bounds_R2[1, 1]
    assert 179 <= covered["a_a"] <= 198
    assert 179 <= covered["lift"] <= 198


def test_shares_that_stand_still_are_one_time_and_pool() -> None:
    sums = sums_of([STATIC, KNEE], users=2000)
    delta = sums.scopes[None, None].delta
    np.testing.assert_allclose(delta.lifts()[1], relative_lifts(delta.total_PR2)[1])
    split = 0
    for seed in range(8):
        decisions, _ = make_experiment(SURFACE, [STATIC, KNEE], users=3000, seed=seed)
        split += plan_of([STATIC, KNEE], decisions, versions=1).strata.size > 1
    assert split == 0


def test_the_ratio_of_mantel_and_haenszel_by_hand() -> None:
    # Stratum 0: control 20/100, arm 3/10. Stratum 1: control 30/60, arm 36/60. g = (100·10/110, 60·60/120).
    sum_UPSR2 = np.zeros((2, 2, 2, 1, 2))
    sum_UPSR2[0, 0, :, 0] = [[20, 100], [30, 60]]
    sum_UPSR2[1, 1, :, 0] = [[3, 10], [36, 60]]
    delta = StratifiedDelta()
    delta.add(sum_UPSR2)
    g = np.array([1000 / 110, 30.0])
    assert delta.lifts()[1, 0] == pytest.approx((g @ [0.3, 0.6]) / (g @ [0.2, 0.5]) - 1)
    sum_UPSR2[1, 1, 0] = 0.0  # the arm is not in the first stratum any more
    alone = StratifiedDelta()
    alone.add(sum_UPSR2)
    assert alone.lifts()[1, 0] == pytest.approx(0.6 / 0.5 - 1)


def test_the_spread_over_strata_is_the_derivative_of_the_lift() -> None:
    """Against a jackknife over the users, which knows no formula."""
    rng = np.random.default_rng(3)
    d = rng.poisson(2.0, size=(400, 2, 3, 1)) * (rng.random((400, 2, 3, 1)) < 0.5)
    sum_UPSR2 = np.stack([rng.binomial(d, 0.4), d], axis=-1).astype(float)

    def logarithm(some_UPSR2: np.ndarray[Any, Any]) -> float:
        delta = StratifiedDelta()
        delta.add(some_UPSR2)
        return float(np.log1p(delta.lifts()[1, 0]))

    left_out = np.array([logarithm(np.delete(sum_UPSR2, u, axis=0)) for u in range(400)])
    sd = np.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    whole = StratifiedDelta()
    whole.add(sum_UPSR2)
    low, high = whole.bounds()[1, 0]
    lift = whole.lifts()[1, 0]
    assert (high - low) / 2 / NormalDist().inv_cdf(0.975) / (1 + lift) == pytest.approx(sd, rel=0.02)


def test_shares_that_never_stand_still_are_told_and_not_reported() -> None:
    counts = {}
    for number in range(200):
        for arm, n in (("static", 1000), ("knee", 50 + 950 * (number % 2))):
            counts[arm, 1, number] = n
    strata = find_strata(("static", "knee"), counts)
    assert strata.mixed == (1,)
    found = experiment([STATIC, KNEE], users=50).model_copy(update={"mixed_versions": (1,)})
    assert experiment_verdict(found).level == "nothing"
    with pytest.raises(ConfigurationError, match="changed too often"):
        list(report_bodies(found, "knee"))


# -------------------------------------------------------------------------------------- checks


def test_chi_square_tail_at_known_quantiles() -> None:
    quantiles = [(3.841, 1, 0.05), (10.828, 1, 1e-3), (5.991, 2, 0.05), (16.266, 3, 1e-3), (84.037, 48, 1e-3)]
    for value, freedom, tail in quantiles:
        assert chi_square_tail(value, freedom) == pytest.approx(tail, rel=1e-3)
    assert chi_square_tail(4200, 4095) == pytest.approx(0.1235, abs=1e-3)
    assert chi_square_tail(0.0, 3) == 1.0
    assert chi_square_tail(1e5, 3) == 0.0


def test_the_sample_ratio_check_by_hand() -> None:
    # (60 - 50)^2 / 50 twice: 4.0, one degree of freedom
    ratio = sample_ratio(3, {"a": 60, "b": 40}, {"a": 0.5, "b": 0.5})
    assert ratio.chi_square == pytest.approx(4.0)
    assert ratio.p_value == pytest.approx(0.0455, abs=1e-4)
    assert ratio.verdict == "as_declared"
    assert sample_ratio(3, {"a": 60, "b": 40}, None).verdict == "not_declared"
    assert sample_ratio(3, {"a": 100, "b": 0}, {"a": 0.9, "b": 0.1}).verdict == "mismatch"


def test_the_sample_ratio_check_has_power_and_seldom_cries_wolf() -> None:
    """3 % of one arm's 100,000 users lost: 1,500 more than its share of the loss, over 6 sd."""
    rng = np.random.default_rng(0)
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    alarms = Counter[str]()
    for _ in range(300):
        users = rng.multinomial(200_000, list(shares.values()))
        lost = users - [rng.binomial(users[0], 0.03), 0, 0]
        for name, counts in (("right", users), ("lost", lost)):
            found = dict(zip(shares, counts.tolist(), strict=True))
            alarms[name] += sample_ratio(1, found, shares).verdict == "mismatch"
    assert alarms["right"] <= 3
    assert alarms["lost"] >= 290


def test_a_mismatch_outweighs_every_lift() -> None:
    shares = Settings(shares={None: {"static": 0.5, "knee": 0.5}})
    arms = [STATIC, replace(KNEE, lifts=(0.2, 0.2, 0.0), share=0.5)]
    judged = experiment_verdict(experiment(arms, shares, users=4000))
    assert judged.level == "nothing"
    assert "SAMPLE-RATIO MISMATCH" in judged.headline
    fair = experiment_verdict(experiment([arms[0], replace(arms[1], share=1.0)], shares, users=4000))
    assert fair.level == "better"


def test_users_of_an_arm_without_a_share_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="arm 'knee', which has no share"):
        experiment([STATIC, KNEE], Settings(shares={None: {"static": 1.0}}), users=100)


@pytest.mark.parametrize(
    ("limit", "interval", "verdict"),
    [
        (Limit(minimum_lift=-0.01), (-0.009, 0.02), "holds"),
        (Limit(minimum_lift=-0.01), (-0.02, 0.02), "undecided"),
        (Limit(minimum_lift=-0.01), (-0.05, -0.02), "breached"),
        (Limit(maximum_lift=0.01), (0.02, 0.03), "breached"),
        (Limit(minimum_lift=-0.01, maximum_lift=0.01), (-0.01, 0.01), "holds"),
        (Limit(maximum_lift=0.01), None, "undecided"),
    ],
)
def test_guardrail_verdicts(limit: Limit, interval: tuple[float, float] | None, verdict: str) -> None:
    assert guardrail_verdict(limit, interval) == verdict


def test_options_become_settings_or_one_line() -> None:
    assert parse_shares(["static=0.5,knee=0.5", "3:static=0.9, knee=0.1"]) == {
        None: {"static": 0.5, "knee": 0.5},
        3: {"static": 0.9, "knee": 0.1},
    }
    limits = parse_limits(["hide<=2%", "hide >= -0.5", "repin>=0"])
    assert limits == {"hide": Limit(minimum_lift=-0.5, maximum_lift=0.02), "repin": Limit(minimum_lift=0)}
    for wrong in ("knee", "knee=half", "3:", "a:b=1"):
        with pytest.raises(ConfigurationError):
            parse_shares([wrong])
    for wrong in ("hide", "hide=2", "hide<=much", "<=2"):
        with pytest.raises(ConfigurationError):
            parse_limits([wrong])
    for shares in ({"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 0.0}):
        with pytest.raises(ValueError, match="shares"):
            Settings(shares={None: shares})


# --------------------------------------------------------------------------------- predictions


def frontier_with(points: dict[float, float]) -> Frontier:
    """α → predicted lift of both objectives."""
    data = frontier_data(SURFACE)
    base = data["points"][0]
    data["points"] = [
        json.loads(json.dumps(base | {"scalarization": [1 - a, a], "lifts": {"repin": x, "p2p": x}}))
        for a, x in points.items()
    ]
    data["candidates"] = {}
    return Frontier.model_validate(data)


def test_predictions_stand_beside_what_was_measured() -> None:
    arms = [
        STATIC,
        *(
            TrueArm(name=f"a{i}", lifts=(0.1 * i, 0.1, 0), scalarization=(2 * (1 - 0.2 * i), 0.4 * i))
            for i in range(1, 5)
        ),
    ]
    frontier = frontier_with({0.2: 0.1, 0.4: 0.2, 0.6: 0.3, 0.9: 0.1})  # a4 used no point of it
    found = experiment(arms, frontier=frontier, users=20_000)
    assert [(p.arm, p.point, p.cohort) for p in found.predictions] == [
        ("a1", 0, None),
        ("a2", 1, None),
        ("a3", 2, None),
    ]
    repin, p2p, _ = found.correlations
    assert repin.pearson == pytest.approx(1.0, abs=0.05)
    assert repin.points == 3
    assert repin.interval is None  # three points give no interval
    assert found.frontier is not None
    assert not found.frontier.matches_decisions
    assert p2p.outcome == "p2p"


def test_correlation_needs_three_points_and_some_spread() -> None:
    line = np.stack([np.arange(6.0), np.array([0.0, 1.2, 1.9, 3.1, 3.9, 5.2])], axis=1)
    assert correlation(line[:2]) == (None, None)
    assert correlation(np.ones((5, 2))) == (None, None)
    r, interval = correlation(line)
    assert r == pytest.approx(np.corrcoef(line.T)[0, 1])
    assert interval is not None
    assert interval[0] < (r or 0) < interval[1] < 1


def test_a_frontier_of_another_surface_is_refused() -> None:
    other = Surface.from_dict(SURFACE.to_dict() | {"name": "other"})
    with pytest.raises(SurfaceMismatchError, match="name"):
        experiment([STATIC, KNEE], frontier=Frontier.model_validate(frontier_data(other)), users=50)


# -------------------------------------------------------------------------------------- output


def test_the_file_reads_back_the_same(tmp_path: Any) -> None:
    found = experiment([STATIC, KNEE], users=200, versions=2)
    write_experiment(tmp_path / "experiment.json", found)
    assert load_experiment(tmp_path) == found


def test_what_is_reported_to_the_sidecar() -> None:
    found = experiment([STATIC, KNEE], users=300, versions=2)
    bodies = list(report_bodies(found, reported_arm(found, None)))
    assert [(body["policy_version"], body["metric"]) for body in bodies] == [
        (2, name) for name in found.outcomes
    ]
    cell = found.cell("knee", 2)
    assert cell is not None
    assert bodies[2]["lift"] == cell.effects["successful_session"].lift
    with pytest.raises(ConfigurationError, match="expected one of knee"):
        reported_arm(found, "static")
