"""What ``benchmarks latency`` is told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.load.plan import Arrivals
from triton_models.errors import BenchmarkError

PARTS = ("p1", "p2", "p3")
QUICK_RATE_PER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """Sizes and conditions of a measurement; written into its result."""

    parts: tuple[str, ...] = PARTS
    blocks: int = 24
    block_s: float = 4.0
    """Seconds of each arm of a block."""
    settle_s: float = 0.5
    """Dropped at the begin of each arm: the other arm's requests may still be under way."""
    warm_up_s: float = 5.0
    """Load before the first block, not counted."""
    arrivals: Arrivals = "poisson"
    share: float = 0.5
    """P1: of the saturation rate."""
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    """P2: of the saturation rate."""
    closed_callers: int = 4
    """P1 in closed loop, beside the open one."""
    ladder: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Callers of the closed loops that find the saturation rate."""
    ladder_s: float = 4.0
    turns: int = 12
    """P3: turns of every contestant."""
    turn_s: float = 4.0
    budget_ms: float = 10.0
    ranker_p50_ms: float = 15.0
    ranker_p99_ms: float = 40.0
    """Of the replayed ranker: log-normal."""
    inject_ms: float = 0.0
    """Put into the ranker's leg where the control is on: the benchmark must find it again."""
    rate_per_s: float | None = None
    """Instead of a share of the saturation rate."""
    hosts: tuple[str, ...] = ("ray",)
    """How the sidecar runs in P1 and P2: ``ray`` as ``serve up`` runs it, or ``plain`` uvicorn."""
    quick: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown or not self.parts:
            raise BenchmarkError(f"parts are {', '.join(PARTS)}; got {', '.join(unknown) or 'none'}")
        if self.blocks < 2 or self.turns < 2:
            raise BenchmarkError(f"need at least 2 blocks and 2 turns, got {self.blocks} and {self.turns}")
        if not 0 <= self.settle_s < min(self.block_s, self.turn_s, self.ladder_s):
            raise BenchmarkError("settle_s must be shorter than block_s, turn_s and ladder_s")
        if not all(0 < share <= 1 for share in (self.share, *self.shares)):
            raise BenchmarkError("shares of the saturation rate lie in (0, 1]")

    def quickened(self) -> LatencySettings:
        """The whole path in seconds: stand-ins, plain uvicorn, few short blocks. No figure of it is one."""
        return replace(
            self,
            parts=("p1",),
            blocks=4,
            block_s=1.0,
            settle_s=0.2,
            warm_up_s=0.5,
            rate_per_s=self.rate_per_s or QUICK_RATE_PER_S,
            ladder=(4,),
            ladder_s=0.5,
            turns=2,
            turn_s=0.6,
            hosts=("plain",),
            quick=True,
        )
