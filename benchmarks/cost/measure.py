"""The whole measurement: who is compared, checked, timed in one run, and what it comes to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cost.compiling import no_silent_fallback
from benchmarks.cost.contestants import (
    Agreement,
    check_contestants,
    choice_inputs,
    cpu_contestants,
    file_contestants,
    torch_threads,
)
from benchmarks.cost.counting import work
from benchmarks.cost.device_runs import PRECISIONS, Precision
from benchmarks.cost.gpu import MODES, Mode
from benchmarks.cost.machine import describe_machine, gpu_name
from benchmarks.cost.measure_gpu import GpuFigures, measure_gpu
from benchmarks.cost.networks import Subject
from benchmarks.cost.targets import Figure, Target, p4_targets
from benchmarks.cost.through_triton import ThroughTriton, measure_through_triton
from benchmarks.cost.timing import TimingSettings, interleaved
from triton_models.errors import BenchmarkError

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """What to measure."""

    batches: tuple[int, ...] = (1, 8, 64, 512)
    threads: int = 1
    timing: TimingSettings = field(default_factory=TimingSettings)
    files: tuple[Path, ...] = ()
    """Further exports of the first network, in other precisions."""
    file_tolerance: float = 0.02
    """Largest difference of a value that those may have."""
    triton: bool = True
    triton_batches: tuple[int, ...] = (1, 8, 64)
    load_s: float = 3.0
    """Seconds of each measurement with requests in flight at once."""
    cpu: bool = True
    gpu: bool | None = None
    """None: if there is one."""
    gpu_batches: tuple[int, ...] = (1, 8, 64, 512, 4096, 16384)
    gpu_modes: tuple[Mode, ...] = MODES
    gpu_precisions: tuple[Precision, ...] = PRECISIONS
    compile: bool = True
    peak_tflops: float | None = None
    peak_tbytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything that one run found out."""

    machine: dict[str, Any]
    settings: CostSettings
    subjects: tuple[Subject, ...]
    labels: dict[str, str]
    """Contestant → what it is called."""
    agreement: dict[str, Agreement]
    figures: tuple[Figure, ...]
    targets: tuple[Target, ...]
    triton: ThroughTriton | None
    gpu: GpuFigures | None
    remarks: tuple[str, ...]

    def figure(self, contestant: str, batch: int) -> Figure | None:
        """What was measured of one contestant at one batch size."""
        return next((f for f in self.figures if f.contestant == contestant and f.batch == batch), None)

    def as_json(self) -> dict[str, Any]:
        """Plain data, raw block medians included."""
        return {
            "machine": self.machine,
            "settings": {**asdict(self.settings), "files": [str(file) for file in self.settings.files]},
            "networks": [describe_subject(subject) for subject in self.subjects],
            "contestants": self.labels,
            "agreement": {key: asdict(found) for key, found in self.agreement.items()},
            "cpu": [
                {**asdict(f), "us_per_choice": f.us_per_choice, "choices_per_s": f.choices_per_s}
                for f in self.figures
            ],
            "targets": [{**asdict(target), "text": target.text} for target in self.targets],
            "triton": None if self.triton is None else asdict(self.triton),
            "gpu": None if self.gpu is None else asdict(self.gpu),
            "remarks": list(self.remarks),
        }


def describe_subject(subject: Subject) -> dict[str, Any]:
    """What a network is and what one choice of it must do, as plain data."""
    flops = {
        kind: work(subject.surface, subject.network.config, 1, arrangement=kind).flops
        for kind in ("A", "B", "served")
    }
    return {
        "key": subject.key,
        "label": subject.label,
        "origin": subject.origin,
        "surface": subject.surface.name,
        "surface_fingerprint": subject.surface.fingerprint,
        "actions": subject.surface.num_actions,
        "parameters": sum(parameter.numel() for parameter in subject.network.parameters()),
        "config": subject.network.config.model_dump(mode="json"),
        "flops_per_choice": flops,
    }


def measure_cost(
    subjects: tuple[Subject, ...], settings: CostSettings, *, say: Say = lambda text: None
) -> Measurement:
    """Measure everything that was asked for and is possible here.

    Raises:
        BenchmarkError: a contestant answers something else than the network, or nothing is to be measured.
        ServerError: the embedded server is missing or does not start.
    """
    machine = describe_machine()
    if not settings.cpu and (settings.gpu is False or gpu_name() is None):
        raise BenchmarkError("nothing is left to measure: the CPU was left out, and no GPU is here or wanted")
    with torch_threads(settings.threads), no_silent_fallback():
        if settings.cpu:
            found = _measure_cpu(subjects, settings, say)
        else:
            found = _Cpu(labels={}, agreement={}, figures=(), triton=None, remarks=())
        gpu, remarks = _gpu(subjects, settings, say)
    return Measurement(
        machine=machine,
        settings=settings,
        subjects=subjects,
        labels=found.labels,
        agreement=found.agreement,
        figures=found.figures,
        targets=p4_targets(found.figures, _ours(subjects, found.labels)),
        triton=found.triton,
        gpu=gpu,
        remarks=(*found.remarks, *remarks),
    )


@dataclass(frozen=True, kw_only=True)
class _Cpu:
    """What was measured without a GPU."""

    labels: dict[str, str]
    agreement: dict[str, Agreement]
    figures: tuple[Figure, ...]
    triton: ThroughTriton | None
    remarks: tuple[str, ...]


def _ours(subjects: tuple[Subject, ...], labels: dict[str, str]) -> dict[str, str]:
    """Whoever P4 is about: every served network, and every further export."""
    files = {key: label for key, label in labels.items() if key.startswith("file")}
    return {**{subject.key: subject.label for subject in subjects}, **files}


def _measure_cpu(subjects: tuple[Subject, ...], settings: CostSettings, say: Say) -> _Cpu:
    files = file_contestants(
        settings.files, subjects[0], threads=settings.threads, tolerance=settings.file_tolerance
    )
    say("exporting and compiling the contestants")
    contestants, served, failed = cpu_contestants(
        subjects, threads=settings.threads, with_compile=settings.compile
    )
    contestants += files
    say("checking that they make the same choice")
    agreement = check_contestants(contestants, subjects)
    figures, skipped = _time(contestants, subjects, settings, say)
    triton = None
    if settings.triton:
        with tempfile.TemporaryDirectory(prefix="puts-cost-") as folder:
            triton = measure_through_triton(
                subjects,
                served,
                Path(folder),
                batches=settings.triton_batches,
                threads=settings.threads,
                settings=settings.timing,
                load_s=settings.load_s,
                say=say,
            )
    return _Cpu(
        labels={contestant.key: contestant.label for contestant in contestants},
        agreement=agreement,
        figures=tuple(figures),
        triton=triton,
        remarks=(*failed, *skipped),
    )


def _time(
    contestants: tuple[Any, ...], subjects: tuple[Subject, ...], settings: CostSettings, say: Say
) -> tuple[list[Figure], list[str]]:
    """All contestants in turns, one batch size after the other; the slow ones stay out of large batches."""
    figures: list[Figure] = []
    skipped: list[str] = []
    per_choice: dict[str, float] = {}
    for batch in sorted(settings.batches):
        inputs = choice_inputs(subjects[0], batch)
        calls = {}
        for contestant in contestants:
            expected = per_choice.get(contestant.key, 0.0) * batch
            if expected > settings.timing.longest_call_s:
                skipped.append(
                    f"{contestant.label}: not measured at batch {batch}, one call would take {expected:.0f} s"
                )
                continue
            calls[contestant.key] = contestant.bind(inputs)
        say(f"timing {len(calls)} contestants in turns, batch {batch}")
        for key, times in interleaved(calls, settings.timing).items():
            figures.append(Figure(contestant=key, batch=batch, times=times))
            per_choice[key] = times.median_s / batch
    return figures, skipped


def _gpu(
    subjects: tuple[Subject, ...], settings: CostSettings, say: Say
) -> tuple[GpuFigures | None, list[str]]:
    name = gpu_name()
    if settings.gpu is False:
        return None, []
    if name is None:
        remark = "no GPU here: P5 is not measured, the CPU figures are all there is"
        say(remark)
        return None, [remark]
    found = measure_gpu(
        subjects,
        "cuda",
        name,
        batches=settings.gpu_batches,
        modes=settings.gpu_modes,
        precisions=settings.gpu_precisions,
        timing=settings.timing,
        peak_flops=None if settings.peak_tflops is None else settings.peak_tflops * 1e12,
        peak_bytes=None if settings.peak_tbytes is None else settings.peak_tbytes * 1e12,
        say=say,
    )
    return found, list(found.remarks)
