"""What a device can do at most: datasheet figures by name, and what it really does.

``time ≥ max(operations / peak operations per second, bytes / peak bytes per second)``
(Williams, Waterman & Patterson, CACM 2009). The ceilings used are the measured ones where they could be
measured: a large matrix product of the same precision, a large copy counting bytes read and written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.cost.counting import Work
from benchmarks.cost.device_runs import PRECISIONS, Precision, set_matrix_precision, synchronize

DATASHEET: dict[str, tuple[dict[Precision, float], float]] = {
    "H200": ({"float32": 67e12, "tf32": 495e12, "bfloat16": 990e12}, 4.8e12),
    "H100": ({"float32": 67e12, "tf32": 495e12, "bfloat16": 990e12}, 3.35e12),
    "A100": ({"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12}, 2.04e12),
    "L40S": ({"float32": 91.6e12, "tf32": 183e12, "bfloat16": 362e12}, 0.864e12),
    "L4": ({"float32": 30.3e12, "tf32": 60e12, "bfloat16": 121e12}, 0.3e12),
    "A10": ({"float32": 31.2e12, "tf32": 62.5e12, "bfloat16": 125e12}, 0.6e12),
    "T4": ({"float32": 8.1e12, "tf32": 8.1e12, "bfloat16": 8.1e12}, 0.32e12),
}
"""Dense peaks by a part of the device's name: operations/s by precision, bytes/s. First match counts."""


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Ceilings of a device and where they are from."""

    device: str
    flops_per_s: dict[Precision, float]
    bytes_per_s: float
    source: str

    def least_time_s(self, work: Work, precision: Precision) -> float:
        """No version is faster than this."""
        return max(work.flops / self.flops_per_s[precision], work.least_bytes / self.bytes_per_s)


def datasheet_peaks(device_name: str) -> Peaks | None:
    """Peaks of a known device, or None."""
    for part, (flops, bandwidth) in DATASHEET.items():
        if part in device_name.split() or part in device_name.replace("-", " ").split():
            return Peaks(device=device_name, flops_per_s=flops, bytes_per_s=bandwidth, source="datasheet")
    return None


def measured_peaks(device: str, name: str, *, size: int = 8192, copy_mb: int = 2048) -> Peaks:
    """Ceilings by a square matrix product of each precision and a copy inside the device's memory."""
    flops: dict[Precision, float] = {}
    for precision in PRECISIONS:
        set_matrix_precision(precision)
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        flops[precision] = 2.0 * size**3 / _fastest_s(lambda a=one, b=other: a @ b, device)  # type: ignore[misc]
    source = torch.ones(copy_mb * 1024**2 // 4, device=device)
    target = torch.empty_like(source)
    bandwidth = 2.0 * source.numel() * 4 / _fastest_s(lambda: target.copy_(source), device)
    return Peaks(device=name, flops_per_s=flops, bytes_per_s=bandwidth, source="measured in this run")


def _fastest_s(run: Callable[[], object], device: str, *, rounds: int = 5, calls: int = 5) -> float:
    best = float("inf")
    for _ in range(rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(device)
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def chosen_peaks(
    device: str, name: str, *, flops: float | None, bandwidth: float | None, **sizes: int
) -> Peaks:
    """Given figures first (operations/s of float32 for every precision, bytes/s), else measured ones."""
    if flops is not None and bandwidth is not None:
        return Peaks(
            device=name,
            flops_per_s=dict.fromkeys(PRECISIONS, flops),
            bytes_per_s=bandwidth,
            source="given",
        )
    found = measured_peaks(device, name, **sizes)
    return Peaks(
        device=name,
        flops_per_s=found.flops_per_s if flops is None else dict.fromkeys(PRECISIONS, flops),
        bytes_per_s=found.bytes_per_s if bandwidth is None else bandwidth,
        source=found.source if flops is None and bandwidth is None else "partly given, partly measured",
    )
