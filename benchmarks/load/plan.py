"""What a load consists of: phases one after the other, each open or closed, written down as plain JSON.

*Open loop*: requests arrive at their own times, whether earlier ones were answered or not, and a latency
counts from the moment at which the request was due. A server that stalls is then charged with everybody
who came meanwhile (no coordinated omission). *Closed loop*: a fixed number of callers, each asking again
as soon as it was answered; what comes out is a capacity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from triton_models.errors import BenchmarkError
from triton_models.files import write_json

FloatArray = npt.NDArray[np.float64]
Arrivals = Literal["poisson", "constant"]

MAX_RATE_PER_S = 20_000.0
MAX_IN_FLIGHT = 1024


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of load on one target."""

    name: str
    """Who or what is measured: the arm, the contestant, the fault."""
    url: str
    """Base URL of the target."""
    seconds: float
    rate_per_s: float | None = None
    """Open loop: mean arrivals a second."""
    in_flight: int | None = None
    """Closed loop: callers."""
    control: bool = True
    """The request's own switch: False asks for production weights."""
    tracestate: str = ""
    """Sent as W3C ``tracestate``, which the sidecar passes on to the ranker."""
    binary: bool = False
    """Send the bodies as tensors (Open Inference Protocol's binary form); answered in JSON all the same."""
    seed: int = 0
    """Phases of equal seed, rate and length have the same arrivals and the same bodies."""
    bare: bool = False
    """The target answers items, scores and source only."""
    unique: bool = False
    """Put the number of the request before its id, so that no two are the same: needed wherever requests are
    told apart afterwards, or explore. Without it equal phases send equal bytes."""
    retries: int = 0
    """How often a caller asks again when its connection or the proxy's broke, as a gateway would; counted."""

    def __post_init__(self) -> None:
        if (self.rate_per_s is None) == (self.in_flight is None):
            raise BenchmarkError(f"{self.name}: say rate_per_s (open loop) or in_flight (closed loop)")
        if self.unique and self.binary:
            raise BenchmarkError(f"{self.name}: ids of their own are for bodies in JSON")
        if not 0 < self.seconds <= 7200:
            raise BenchmarkError(f"{self.name}: seconds must lie in (0, 7200], got {self.seconds:g}")
        if self.rate_per_s is not None and not 0 < self.rate_per_s <= MAX_RATE_PER_S:
            raise BenchmarkError(
                f"{self.name}: rate must lie in (0, {MAX_RATE_PER_S:g}], got {self.rate_per_s:g}"
            )
        if self.in_flight is not None and not 1 <= self.in_flight <= MAX_IN_FLIGHT:
            raise BenchmarkError(
                f"{self.name}: in_flight must lie in 1..{MAX_IN_FLIGHT}, got {self.in_flight}"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Phases back to back, and the bodies that they send."""

    phases: tuple[Phase, ...]
    traffic: Path
    """Bodies, one JSON object a line (:mod:`benchmarks.load.traffic`)."""
    surface: dict[str, Any]
    arrivals: Arrivals = "poisson"

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return sum(phase.seconds for phase in self.phases)

    def write(self, path: Path) -> None:
        """Write it where the load process reads it."""
        write_json(path, asdict(self) | {"traffic": str(self.traffic)})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """What :meth:`write` wrote."""
        phases = tuple(Phase(**phase) for phase in data["phases"])
        return cls(**data | {"phases": phases, "traffic": Path(data["traffic"])})


def arrival_offsets(*, rate_per_s: float, seconds: float, arrivals: Arrivals, seed: int) -> FloatArray:
    """Due times from the start of a phase, seconds, increasing, all inside [0, seconds).

    ``poisson``: gaps ``~ Exp(rate)``, as independent callers make them. ``constant``: equal gaps.
    """
    if arrivals == "constant":
        return np.asarray(np.arange(max(1, int(rate_per_s * seconds))) / rate_per_s)
    generator = np.random.default_rng([seed, 71])
    expected = rate_per_s * seconds
    count = int(expected + 10.0 * np.sqrt(expected) + 10.0)
    times = np.cumsum(generator.exponential(1.0 / rate_per_s, size=count))
    return np.asarray(times[times < seconds])
