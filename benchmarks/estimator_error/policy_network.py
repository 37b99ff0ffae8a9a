"""A small network that makes the policies: fitted in seconds on logged requests that are not in the pool.

An MLP over a digest of the state and the normalised weights, with the paper's kind of heads and mistakes of
the same kind as the paper's network makes, at a hundredth of its cost. Benchmarks of estimators need
policies that were learned, since what a learned policy likes is what its network overrates.

Shape legend: n requests, A actions, M objectives.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float32]

EPOCHS, BATCH, RATE = 6, 512, 3e-3
STATE_WIDTH, ACTION_WIDTH = 64, 32


class PolicyNetwork(nn.Module):
    """``Q_m(s, a)`` from a digest of the state."""

    def __init__(self, digest: Array, grid_AW: npt.NDArray[np.float64], objectives: int) -> None:
        super().__init__()
        self._mean = torch.from_numpy(digest.mean(axis=0))
        self._scale = torch.from_numpy(digest.std(axis=0) + 1e-6)
        self._grid_AW = torch.from_numpy(grid_AW).float()
        self.state = nn.Sequential(nn.Linear(digest.shape[1], STATE_WIDTH), nn.ReLU())
        self.action = nn.Sequential(nn.Linear(grid_AW.shape[1], ACTION_WIDTH), nn.ReLU())
        self.head = nn.Sequential(
            nn.Linear(STATE_WIDTH + ACTION_WIDTH, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(),
            nn.Linear(32, objectives),
        )  # fmt: skip

    def logits(self, digest: Tensor, action: Tensor) -> Tensor:
        """Of the given actions, [n, M]."""
        state = self.state((digest - self._mean) / self._scale)
        out: Tensor = self.head(torch.cat([state, self.action(self._grid_AW[action])], dim=1))
        return out

    def action_values(self, digest: Array) -> Array:
        """Q of every action, [n, A, M]."""
        with torch.inference_mode():
            state = self.state((torch.from_numpy(digest) - self._mean) / self._scale)
            action = self.action(self._grid_AW)
            pairs = torch.cat(
                [
                    state[:, None].expand(-1, len(action), -1),
                    action[None].expand(len(state), -1, -1),
                ],
                dim=2,
            )
            return np.asarray(torch.sigmoid(self.head(pairs)).numpy())


def fit_policy_network(
    digest: Array,
    action: npt.NDArray[np.int64],
    reward: Array,
    grid_AW: npt.NDArray[np.float64],
    *,
    seed: int,
) -> PolicyNetwork:
    """Fit by BCE; the same network for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PolicyNetwork(digest, grid_AW, reward.shape[1])
    x, a, r = torch.from_numpy(digest), torch.from_numpy(action), torch.from_numpy(reward)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-3)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            loss = nn.functional.binary_cross_entropy_with_logits(network.logits(x[rows], a[rows]), r[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()
