"""What training minimises: each member's mean loss, what counts add to it, and how much a weight forgets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import poisson
from torch import Tensor

from ray_train.learners import COMMITTEE, PAPER
from ray_train.objective import (
    MOST_COUNT,
    batch_loss,
    continuation_logits,
    count_losses,
    row_losses,
    weight_decay_of,
)

USERS = torch.tensor([0, 1, 2, 3, 4, 5])
ONES = torch.ones(6, 3)


def all_seen(logits_EBM: Tensor) -> Tensor:
    return torch.ones(logits_EBM.shape[:2], dtype=torch.bool)


def losses(*, jackknife: bool) -> tuple[Tensor, Tensor]:
    """Of two members the loss, and where its gradient is not zero, [E, B]."""
    torch.manual_seed(0)
    logits_EBM = torch.randn(2, 6, 3, requires_grad=True)
    settings = COMMITTEE.fit_settings(jackknife=jackknife, count_weight=0.0)
    loss, told = batch_loss(logits_EBM, ONES, ONES.to(torch.uint8), USERS, settings)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits_EBM.grad is not None
    torch.testing.assert_close(told, loss.detach() / 2)
    return loss.detach(), logits_EBM.grad.abs().sum(dim=2) > 0


def test_all_members_see_all_users() -> None:
    loss, moved_EB = losses(jackknife=False)
    assert moved_EB.all()
    torch.manual_seed(0)
    expected = sum(row_losses(part, ONES, "bce").mean() for part in torch.randn(2, 6, 3))
    torch.testing.assert_close(loss, torch.as_tensor(expected))


def test_in_a_jackknife_a_member_does_not_see_its_own_users() -> None:
    _, moved_EB = losses(jackknife=True)
    assert moved_EB.tolist() == [[False, True] * 3, [True, False] * 3]


def test_decay_holds_up_to_some_rows_and_falls_as_their_inverse() -> None:
    settings = COMMITTEE.fit_settings(weight_decay=0.3, weight_decay_rows=1000)
    assert [weight_decay_of(settings, rows) for rows in (0, 10, 1000)] == [0.3, 0.3, 0.3]
    assert weight_decay_of(settings, 4000) == pytest.approx(0.075)


def test_the_default_learner_decays_less_on_a_longer_log_and_the_baseline_does_not() -> None:
    long = 900_000
    assert weight_decay_of(COMMITTEE.fit_settings(), long) < COMMITTEE.fit_settings().weight_decay
    assert weight_decay_of(PAPER.fit_settings(), long) == PAPER.fit_settings().weight_decay


# ------------------------------------------------------------------------------------------------- counts


def test_continuation_of_a_poisson_count_is_that_of_its_tail() -> None:
    rate_n = np.geomspace(2e-4, 7.0, 60)
    found = continuation_logits(torch.from_numpy(np.log(np.expm1(rate_n))).float())
    assert len(found) == MOST_COUNT - 1
    for k, logits_n in enumerate(found, start=1):
        more_n = poisson.sf(k, rate_n) / poisson.sf(k - 1, rate_n)
        np.testing.assert_allclose(torch.sigmoid(logits_n.double()).numpy(), more_n, rtol=2e-5)


def test_extreme_log_odds_have_finite_gradients() -> None:
    logits_EBM = torch.tensor([[[-1e4], [-60.0], [0.0], [60.0], [1e4]]], requires_grad=True)
    counts = torch.tensor([0, 1, 2, 3, 255], dtype=torch.uint8)
    for turn in range(len(counts)):
        rows_BM = counts.roll(turn).unsqueeze(1)
        count_losses(logits_EBM, rows_BM, all_seen(logits_EBM)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits_EBM.grad is not None
    assert torch.isfinite(logits_EBM.grad).all()
    assert (logits_EBM.grad != 0).any()


@pytest.mark.parametrize("rows", [40, 4000])
@pytest.mark.parametrize("kind", ["poisson", "varied", "unrelated", "opposite"])
def test_level_and_slope_are_the_best_for_the_batch(rows: int, kind: str) -> None:
    rng = np.random.default_rng(1)
    rate_n = np.exp(rng.normal(-0.2, 0.8, size=rows))
    count_n = {
        "poisson": rng.poisson(rate_n),
        "varied": rng.poisson(rng.gamma(0.7, rate_n / 0.7)),
        "unrelated": (rng.poisson(rate_n) > 0) * rng.integers(1, 4, size=rows),
        "opposite": (rng.poisson(rate_n) > 0) * (1 + rng.poisson(0.5 / rate_n)),
    }[kind]
    logits_EBM = torch.from_numpy(np.log(np.expm1(rate_n)))[None, :, None]
    counts_BM = torch.from_numpy(count_n.clip(max=255).astype(np.uint8))[:, None]
    best, slopes = 0.0, []
    for k, x in enumerate(continuation_logits(logits_EBM[0, :, 0]), start=1):
        x_n, sign_n = x.numpy()[count_n >= k], np.where(count_n > k, -1, 1)[count_n >= k]

        def entropy(db: npt.NDArray[np.float64], x=x_n, sign=sign_n) -> float:  # type: ignore[no-untyped-def]
            return float(np.logaddexp(0.0, sign * (db[0] + db[1] * x)).sum())

        nearest = minimize(entropy, [0.0, 0.5], bounds=[(None, None), (0.0, 2.0)])
        best, slopes = best + nearest.fun, [*slopes, nearest.x[1]]
    if rows == 4000:
        low, high = {
            "poisson": (0.8, 1.2),
            "varied": (0.3, 0.9),
            "unrelated": (0.0, 0.2),
            "opposite": (0.0, 0.0),
        }[kind]
        assert all(low <= slope <= high for slope in slopes)
    found = count_losses(logits_EBM, counts_BM, all_seen(logits_EBM))
    assert float(found.sum()) == pytest.approx(best, rel=1e-6)


def gradient(counts_BM: Tensor, weight: float, *, jackknife: bool = False) -> Tensor:
    """Of the loss of two members by their log-odds, [E, B, M]."""
    torch.manual_seed(0)
    logits_EBM = torch.randn(2, *counts_BM.shape, requires_grad=True)
    rewards_BM = (counts_BM > 0).float()
    settings = COMMITTEE.fit_settings(count_weight=weight, jackknife=jackknife)
    loss, _ = batch_loss(logits_EBM, rewards_BM, counts_BM, torch.arange(len(counts_BM)), settings)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits_EBM.grad is not None
    return logits_EBM.grad


def test_counts_that_stop_at_one_change_nothing() -> None:
    counts_BM = torch.bernoulli(torch.full((1024, 2), 0.5)).to(torch.uint8)
    assert torch.equal(gradient(counts_BM, 0.5), gradient(counts_BM, 0.0))
    # Nor do counts of which each says "three or more, if any".
    assert torch.equal(gradient(3 * counts_BM, 0.5), gradient(counts_BM, 0.0))
    counts_BM[0] = 2
    assert not torch.equal(gradient(counts_BM, 0.5), gradient(counts_BM, 0.0))


def test_a_member_of_a_jackknife_does_not_learn_from_the_counts_of_users_it_does_not_see() -> None:
    counts_BM = torch.from_numpy(np.random.default_rng(4).poisson(1.5, size=(64, 2)).astype(np.uint8))
    other_BM = counts_BM.clone()
    unseen_BM = counts_BM[::2]  # by member 0
    other_BM[::2] = torch.where(unseen_BM > 0, unseen_BM % 3 + 1, 0)
    before_EBM, after_EBM = (gradient(one, 0.5, jackknife=True) for one in (counts_BM, other_BM))
    assert torch.equal(before_EBM[0], after_EBM[0])
    assert not torch.equal(before_EBM[1], after_EBM[1])


def effects(count_nM: npt.NDArray[np.int64], x_nF: npt.NDArray[np.float64], weight: float) -> Tensor:
    """Fit ``z_m = a_m + Σ_f b_fm x_f`` to M columns of counts at once; a and b, [1 + F, M]."""
    x_nD = torch.from_numpy(np.column_stack([np.ones(len(x_nF)), x_nF]))
    rewards_nM = torch.from_numpy((count_nM > 0).astype(np.float64))
    counts_nM = torch.from_numpy(count_nM.clip(max=255).astype(np.uint8))
    b_DM = torch.zeros(x_nD.shape[1], count_nM.shape[1], dtype=torch.float64, requires_grad=True)
    settings, user_n = COMMITTEE.fit_settings(count_weight=weight), torch.zeros(len(x_nF), dtype=torch.int32)
    optimizer = torch.optim.LBFGS([b_DM], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = batch_loss((x_nD @ b_DM)[None], rewards_nM, counts_nM, user_n, settings)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return b_DM.detach()


def sessions(rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of 2000 requests the level, which varies much, and a small effect [n, 2]; and the log-odds of both."""
    x_nF = np.column_stack([rng.normal(size=2000), np.repeat([-1.0, 1.0], 1000)])
    return x_nF, 0.2 + x_nF @ [1.0, 0.2]


def test_counts_make_an_effect_surer_where_they_are_poisson() -> None:
    rng = np.random.default_rng(2)
    x_nF, z_n = sessions(rng)
    count_nM = rng.poisson(np.log1p(np.exp(z_n))[:, None], size=(2000, 200))
    without, with_ = (effects(count_nM, x_nF, weight)[2] for weight in (0.0, 0.5))
    assert float(with_.var() / without.var()) < 0.85
    assert float(with_.mean()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("opposite", [False, True])
def test_counts_that_do_not_follow_the_chance_do_no_harm(opposite: bool) -> None:
    rng = np.random.default_rng(5)
    x_nF, z_n = sessions(rng)
    p_n1 = 1.0 / (1.0 + np.exp(-z_n))[:, None]
    more_nM = rng.random((2000, 200)) < (1.0 - p_n1 if opposite else 0.4)
    count_nM = (rng.random((2000, 200)) < p_n1) * (1 + more_nM)
    without, with_ = (effects(count_nM, x_nF, weight)[1:] for weight in (0.0, 0.5))
    assert float(((with_ - without).mean(dim=1) / without.mean(dim=1)).abs().max()) < 0.03
    assert float(with_[1].std() / without[1].std()) < 1.02


def test_the_chance_of_at_least_one_stays_calibrated_where_sessions_vary() -> None:
    # Negative binomial: rates of sessions vary as much as their mean.
    rng = np.random.default_rng(3)
    x_n = np.repeat([-1.0, 1.0], 20_000)
    mean_n = np.exp(-0.5 + 0.15 * x_n)
    count_nM = rng.poisson(rng.gamma(1.0, mean_n)[:, None], size=(40_000, 2))
    a_M, b_M = effects(count_nM, x_n[:, None], 0.5)
    p_2M = torch.sigmoid(torch.stack([a_M - b_M, a_M + b_M]))
    true_2 = torch.tensor([1.0 - 1.0 / (1.0 + mean_n[0]), 1.0 - 1.0 / (1.0 + mean_n[-1])])
    seen_M = torch.from_numpy((count_nM > 0).mean(axis=0))
    torch.testing.assert_close(p_2M.mean(dim=0), seen_M, atol=0.002, rtol=0)
    assert float((p_2M.mean(dim=1) - true_2).abs().max()) < 0.01


def test_only_the_default_learner_learns_from_counts() -> None:
    assert COMMITTEE.fit_settings().count_weight > 0
    assert PAPER.fit_settings().count_weight == 0
    torch.manual_seed(0)
    logits_EBM, counts_BM = torch.randn(1, 6, 3), torch.arange(18).reshape(6, 3).to(torch.uint8)
    rewards_BM = (counts_BM > 0).float()
    for loss, weight in (("mse", 0.5), ("bce", 0.0)):
        settings = COMMITTEE.fit_settings(loss=loss, count_weight=weight)
        whole, told = batch_loss(logits_EBM, rewards_BM, counts_BM, USERS, settings)
        torch.testing.assert_close(whole, row_losses(logits_EBM[0], rewards_BM, loss).mean())
        torch.testing.assert_close(told, whole)
