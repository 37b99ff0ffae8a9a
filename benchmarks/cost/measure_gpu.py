"""Timing the choice on a GPU and its share of the roofline (P5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cost.compiling import no_silent_fallback
from benchmarks.cost.contestants import Agreement, agreement, choice_inputs
from benchmarks.cost.counting import Arrangement, work
from benchmarks.cost.device_runs import (
    PRECISIONS,
    BoundRun,
    Precision,
    device_time_s,
    matrix_precision_kept,
    synchronize,
)
from benchmarks.cost.gpu import ELEMENT_BYTES, MODES, GpuContestant, Mode, gpu_contestants
from benchmarks.cost.networks import Subject
from benchmarks.cost.roofline import Peaks, chosen_peaks, datasheet_peaks
from benchmarks.cost.timing import Call, Times, TimingSettings, interleaved
from triton_models.errors import BenchmarkError
from triton_models.export import parity_cases, reference_outputs

LARGEST_NAIVE_BATCH = 512
"""The naive exports hold 49 times the intermediate results."""
P5_SHARE = 0.5
PLAUSIBLE_SHARE = 1.05
P5_CALL_MS = 0.5


@dataclass(frozen=True, kw_only=True)
class GpuFigure:
    """One contestant at one batch size."""

    contestant: str
    naive: bool
    batch: int
    call: Times
    """Host to host: inputs in, run, choice out."""
    device_s: float
    """One run among queued ones, everything resident."""
    flops: float
    least_bytes: float
    operand_bytes: float
    share: float
    """Of the roofline: its least time over ``device_s``."""


@dataclass(frozen=True, kw_only=True)
class GpuFigures:
    """Everything that was measured on the device."""

    peaks: Peaks
    datasheet: Peaks | None
    labels: dict[str, str]
    agreement: dict[str, Agreement]
    figures: tuple[GpuFigure, ...]
    remarks: tuple[str, ...]

    def best(self) -> GpuFigure | None:
        """The figure with the largest share of the roofline; a naive export's own work is no measure."""
        ours = (figure for figure in self.figures if not figure.naive)
        return max(ours, key=lambda figure: figure.share, default=None)

    def lines(self) -> list[str]:
        """P5 for a person."""
        best = self.best()
        if best is None:
            return ["P5: nothing could be measured on the GPU"]
        verdict = "reached" if best.share >= P5_SHARE else "MISSED"
        if best.share > PLAUSIBLE_SHARE:
            verdict = f"no finding, the ceilings ({self.peaks.source}) are below what the device does"
        found = [
            f"P5: {100 * best.share:.1f} % of the roofline at batch {best.batch} "
            f"({self.labels[best.contestant]}), target >= {100 * P5_SHARE:.0f} %: {verdict}"
        ]
        small = [figure for figure in self.figures if figure.batch == 1 and not figure.naive]
        if small:
            quickest = min(small, key=lambda figure: figure.call.median_s)
            milliseconds = 1e3 * quickest.call.median_s
            verdict = "reached" if milliseconds <= P5_CALL_MS else "MISSED"
            found.append(
                f"P5: p50 at batch 1 {milliseconds:.3f} ms host to host in this process "
                f"({self.labels[quickest.contestant]}), target <= {P5_CALL_MS:g} ms: {verdict}"
            )
        return found


def measure_gpu(
    subjects: tuple[Subject, ...],
    device: str,
    name: str,
    *,
    batches: tuple[int, ...],
    timing: TimingSettings,
    peak_flops: float | None = None,
    peak_bytes: float | None = None,
    modes: tuple[Mode, ...] = MODES,
    precisions: tuple[Precision, ...] = PRECISIONS,
    say: Callable[[str], None] = lambda text: None,
    **peak_sizes: int,
) -> GpuFigures:
    """Check, then time every contestant on ``device``.

    What cannot run there (compilation, memory) is left out with a remark; what answers otherwise than the
    network is refused the same way, since lower precisions are tried and not promised.
    """
    with matrix_precision_kept(), no_silent_fallback():
        say(f"peaks of {name}")
        peaks = chosen_peaks(device, name, flops=peak_flops, bandwidth=peak_bytes, **peak_sizes)
        everybody = gpu_contestants(subjects, device, modes=modes, precisions=precisions)
        contestants, found, remarks = _checked(everybody, _check_batch(batches), say)
        figures: list[GpuFigure] = []
        for batch in sorted(batches):
            say(f"timing {len(contestants)} contestants on {name}, batch {batch}")
            figures += _at_batch(contestants, batch, device, timing, peaks, remarks)
    return GpuFigures(
        peaks=peaks,
        datasheet=datasheet_peaks(name),
        labels={contestant.key: contestant.label for contestant in contestants},
        agreement=found,
        figures=tuple(figures),
        remarks=tuple(remarks),
    )


def _check_batch(batches: tuple[int, ...]) -> int:
    """The timed batch size that the answers are compared at: a middling one."""
    return min(batches, key=lambda batch: abs(batch - 64))


def _checked(
    contestants: tuple[GpuContestant, ...], batch: int, say: Callable[[str], None]
) -> tuple[list[GpuContestant], dict[str, Agreement], list[str]]:
    remarks: list[str] = []
    found: dict[str, Agreement] = {}
    expected: dict[str, Any] = {}
    kept = []
    for contestant in contestants:
        say(f"checking {contestant.label}")
        subject = contestant.subject
        cases = parity_cases(subject.surface, random_cases=64, seed=7)
        if subject.key not in expected:
            expected[subject.key] = reference_outputs(subject.surface, subject.network, cases)
        try:
            found[contestant.key] = agreement(
                contestant.checked(batch), subject, expected[subject.key], cases
            )
        except BenchmarkError as error:
            remarks.append(str(error))
        except Exception as error:  # whatever a compiler or a driver may raise
            remarks.append(_failure(contestant, error))
        else:
            kept.append(contestant)
    return kept, found, remarks


def _failure(contestant: GpuContestant, error: Exception) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{contestant.label}: not measured, {type(error).__name__}: {text}"


def _at_batch(
    contestants: list[GpuContestant],
    batch: int,
    device: str,
    timing: TimingSettings,
    peaks: Peaks,
    remarks: list[str],
) -> list[GpuFigure]:
    bound: dict[str, BoundRun] = {}
    device_s: dict[str, float] = {}
    for contestant in contestants:
        if contestant.naive is not None and batch > LARGEST_NAIVE_BATCH:
            continue
        try:
            run = contestant.bind(choice_inputs(contestant.subject, batch))
            device_s[contestant.key] = device_time_s(run, budget_s=10 * timing.block_s)
        except Exception as error:  # out of memory, mostly
            remarks.append(f"batch {batch}: {_failure(contestant, error)}")
            continue
        bound[contestant.key] = run
    calls: dict[str, Call] = {key: run.call for key, run in bound.items()}
    times = interleaved(calls, timing)
    synchronize(device)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    by_key = {contestant.key: contestant for contestant in contestants}
    return [_figure(by_key[key], batch, times[key], device_s[key], peaks) for key in calls]


def _figure(contestant: GpuContestant, batch: int, call: Times, device_s: float, peaks: Peaks) -> GpuFigure:
    subject = contestant.subject
    arrangement: Arrangement = contestant.naive or "served"
    done = work(
        subject.surface,
        subject.network.config,
        batch,
        arrangement=arrangement,
        element_bytes=ELEMENT_BYTES[contestant.precision],
    )
    return GpuFigure(
        contestant=contestant.key,
        naive=contestant.naive is not None,
        batch=batch,
        call=call,
        device_s=device_s,
        flops=done.flops,
        least_bytes=done.least_bytes,
        operand_bytes=done.operand_bytes,
        share=peaks.least_time_s(done, contestant.precision) / device_s,
    )
