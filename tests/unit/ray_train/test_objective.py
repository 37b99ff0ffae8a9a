"""What training minimises: each member's mean loss, and how much of a weight is forgotten at every step."""

from __future__ import annotations

import pytest
import torch

from ray_train.learners import COMMITTEE, PAPER
from ray_train.objective import batch_loss, row_losses, weight_decay_of

USERS = torch.tensor([0, 1, 2, 3, 4, 5])


def losses(*, jackknife: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two members the loss, and where its gradient is not zero, [E, B]."""
    torch.manual_seed(0)
    logits_EBM = torch.randn(2, 6, 3, requires_grad=True)
    loss = batch_loss(logits_EBM, torch.ones(6, 3), USERS, "bce", jackknife=jackknife)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits_EBM.grad is not None
    return loss.detach(), logits_EBM.grad.abs().sum(dim=2) > 0


def test_all_members_see_all_users() -> None:
    loss, moved_EB = losses(jackknife=False)
    assert moved_EB.all()
    torch.manual_seed(0)
    expected = sum(row_losses(part, torch.ones(6, 3), "bce").mean() for part in torch.randn(2, 6, 3))
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
