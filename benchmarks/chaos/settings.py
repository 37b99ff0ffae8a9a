"""What ``benchmarks chaos`` is told."""

from __future__ import annotations

from dataclasses import dataclass, replace

from triton_models.errors import BenchmarkError

FAULTS = {
    "external": (
        *("value_killed", "value_stopped", "stub_stopped", "stub_killed"),
        *("rubbish_nan", "rubbish_off_grid", "rubbish_wrong_shape", "rubbish_empty", "rubbish_error"),
        *("value_slow", "ranker_slow", "ranker_error", "ranker_rubbish", "ranker_killed"),
    ),
    "supervised": ("embedded_killed", "embedded_stub_killed", "embedded_stopped"),
    "operations": ("policy_changed", "store_gone", "replica_killed", "disk_full"),
}
"""Stage → names of its faults."""

STAGES = tuple(FAULTS)
"""external: servers of somebody else's, faults measure breaker and recovery. supervised: servers that
``serve up`` started, faults measure supervision. operations: replicas, policies, their store, the log."""


@dataclass(frozen=True, kw_only=True)
class ChaosSettings:
    """Sizes and conditions; written into the result."""

    stages: tuple[str, ...] = STAGES
    only: tuple[str, ...] = ()
    """Faults by name; empty: all of the stages."""
    share: float = 0.5
    """Of the saturation rate."""
    rate_per_s: float | None = None
    """Instead of a share of the saturation rate."""
    control_s: float = 8.0
    """Fault-free window before each fault."""
    fault_s: float = 8.0
    after_s: float = 8.0
    """After it works again."""
    repeats: int = 1
    """How often each fault is put in: what is replaced in 1.7 s is away for a few hundred requests only."""
    warm_up_s: float = 4.0
    ladder: tuple[int, ...] = (4, 8, 16, 32)
    ladder_s: float = 4.0
    budget_ms: float = 10.0
    ranker_p50_ms: float = 15.0
    ranker_p99_ms: float = 40.0
    slow_ms: float = 200.0
    """A slow value network's answer takes so much longer."""
    quick: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.stages) - set(STAGES))
        if unknown or not self.stages:
            raise BenchmarkError(f"stages are {', '.join(STAGES)}; got {', '.join(unknown) or 'none'}")
        known = [name for stage in self.stages for name in FAULTS[stage]]
        if strangers := [name for name in self.only if name not in known]:
            raise BenchmarkError(f"no fault {strangers[0]!r} in these stages; there are {', '.join(known)}")
        if not 0 < self.share <= 1:
            raise BenchmarkError(f"share lies in (0, 1], got {self.share:g}")
        if self.repeats < 1:
            raise BenchmarkError(f"repeats must be at least 1, got {self.repeats}")
        if min(self.control_s, self.fault_s, self.after_s) <= 0:
            raise BenchmarkError("control_s, fault_s and after_s must be positive")

    def quickened(self) -> ChaosSettings:
        """The whole path in seconds: stand-ins, plain uvicorn, short windows. No figure of it is one."""
        return replace(
            self,
            stages=("external",),
            only=self.only or ("rubbish_nan", "value_killed", "ranker_killed"),
            rate_per_s=self.rate_per_s or 60.0,
            control_s=1.0,
            fault_s=1.5,
            after_s=3.0,
            warm_up_s=0.5,
            quick=True,
        )
