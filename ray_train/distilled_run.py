"""``distil``: read states, fit the student, show that it chooses like its teacher, write its run.

The comparison is made twice on the hold-out. In the teacher's eyes, how often the student chooses the same
action and how much of the gain that the teacher expects from choosing per request it keeps
(:func:`ray_train.distil.compare_policies`). And on what was logged: the relative difference of every
objective between both policies on the same rows, with simultaneous intervals clustered by user.

Shape legend: P scalarizations, M objectives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from ray_train.cluster import joined_ray
from ray_train.distil import (
    Sameness,
    Taught,
    compare_policies,
    distil,
    teach,
)
from ray_train.distil_settings import DistilSettings
from ray_train.drift_scan import REFERENCE
from ray_train.epochs import Progress, serialize
from ray_train.estimators import ChosenActions, FloatArray, SelfNormalizedIPS
from ray_train.evaluation import evaluate
from ray_train.intervals import DeltaMethod
from ray_train.learning_curve import learning_html
from ray_train.logs import LogFiles, discover_files, parse_instant
from ray_train.reading import CleanReader, Unit, Window, list_units
from ray_train.scoring import ScoringTask, score_log
from ray_train.shards import sample
from ray_train.sweep_settings import SweepSettings
from triton_models.errors import ConfigurationError, LogError, RunError
from triton_models.files import or_null, staged_directory, write_atomically, write_json
from triton_models.network import ValueNetwork
from triton_models.network_config import NetworkConfig
from triton_models.runs import SURFACE, WEIGHTS, Run, RunManifest, new_run_id, write_manifest
from triton_models.state_sample import SAMPLE, pack_states
from triton_models.surface import Surface

COMPARISON = "distillation.json"
MAX_UNEXPLAINED = 0.05

COMPARED_POINTS = 11
"""Scalarizations of the comparison, spread like a sweep's."""
SEEN_ROWS = 16_384
"""Most hold-out states that are compared in the teacher's eyes."""
CONFIDENCE = 0.95
"""Of all intervals of the comparison together (Bonferroni)."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Student against teacher on the hold-out."""

    scalarization_PM: FloatArray
    sameness: Sameness
    difference_PM: FloatArray
    """Relative difference of every objective on the logged rows (SNIPS), student minus teacher."""
    bounds_PM2: FloatArray
    rows: int

    @property
    def told_apart(self) -> bool:
        """Whether some simultaneous interval of a difference excludes zero."""
        return bool(((self.bounds_PM2[..., 0] > 0) | (self.bounds_PM2[..., 1] < 0)).any())


def distil_run(
    *,
    teacher: Run,
    logs: str,
    out: Path,
    network: NetworkConfig,
    settings: DistilSettings,
    max_unexplained: float = MAX_UNEXPLAINED,
    force: bool = False,
    max_bad_share: float = 0.01,
    gpu: bool = False,
    address: str | None = None,
    now: datetime | None = None,
    say: Say,
) -> Path:
    """Distil a run into a cheaper one.

    Args:
        teacher: the fitted run.
        logs: its logs; states of its training window are learned from, its hold-out is compared on.
        out: folder of the student's run; must not exist.
        network: the student's parts and sizes.
        settings: how to distil.
        max_unexplained: most of the teacher's variance over hold-out states that may be left unexplained.
        force: write the student even if it is not the teacher's equal.
        max_bad_share: most bad rows in the hold-out.
        gpu: distil on this machine's GPU.
        address: Ray cluster of the comparison; a local one is started if there is none.
        now: timestamps after it are bad rows; default the clock.
        say: told one line at a time what happens.

    Returns:
        The folder of the student's run.

    Raises:
        LogError: the logs hold too few usable rows of the run's windows.
        RunError: ``out`` exists, or the student does not choose like its teacher; nothing is written.
        ConfigurationError: no GPU, or sizes that do not fit.
    """
    if out.exists():
        raise RunError(f"{out}: exists already; name another --out")
    if gpu and not torch.cuda.is_available():
        raise ConfigurationError("--gpu: this machine has no GPU that torch can use; leave out --gpu")
    device = torch.device("cuda" if gpu else "cpu")
    began, now = time.monotonic(), now or datetime.now(UTC)
    surface, old = teacher.surface, teacher.load_network()
    log = _Log(surface, discover_files(logs), teacher, now)
    with joined_ray(address):  # first: a student would be lost with a cluster that cannot be reached
        taught = log.taught(old, log.train_window, settings.rows, device, settings.seed)
        holdout = log.taught(old, log.holdout_window, SEEN_ROWS, device, settings.seed)
        say(f"teacher    {teacher.manifest.run_id}, {_parameters(old):,} parameters")
        say(f"student    {_size(surface, network):,} parameters")
        say(f"           {len(taught):,} states to learn from, {len(holdout):,} later ones to compare on")
        student, progress = distil(surface, network, taught, holdout, settings, say)
        say("comparing both policies on the logged hold-out rows")
        comparison = log.compare(old, student, holdout, max_bad_share)
    for line in describe(surface, comparison):
        say(line)
    problem = _problem(progress, comparison, max_unexplained)
    if problem and not force:
        raise RunError(
            f"{problem}; nothing was written; use more --rows or --epochs, larger sizes, or --force"
        )
    with staged_directory(out) as folder:
        manifest = _manifest(teacher, logs, network, settings, progress, comparison, time.monotonic() - began)
        states = {name: value.cpu().numpy() for name, value in holdout.state.items()}
        write_atomically(folder / SAMPLE, pack_states(surface, states))
        if (teacher.path / REFERENCE).exists():  # drift is counted from what the teacher was taught
            write_atomically(folder / REFERENCE, (teacher.path / REFERENCE).read_bytes())
        _write(folder, surface, student, manifest, progress, comparison)
    return out


def _problem(progress: Progress, comparison: Comparison, max_unexplained: float) -> str | None:
    """Why the student is not its teacher's equal, or None."""
    unexplained = max(unexplained_share(progress), float(comparison.sameness.unexplained_M.max()))
    if unexplained > max_unexplained:
        return (
            f"the student leaves {unexplained:.2%} of its teacher unexplained, allowed {max_unexplained:.2%}"
        )
    if not np.isfinite(comparison.bounds_PM2).all():
        return "the logged hold-out is too small to compare the student with its teacher"
    if comparison.told_apart:
        return "the logs tell the student's policies from its teacher's (an interval excludes zero)"
    return None


def unexplained_share(progress: Progress) -> float:
    """The teacher's variance over hold-out states that the kept student leaves, as a share."""
    return progress.history[progress.best_epoch - 1]["holdout_loss"] / progress.constant_loss


def _parameters(network: ValueNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _size(surface: Surface, config: NetworkConfig) -> int:
    with torch.device("meta"):
        return _parameters(ValueNetwork(surface, config))


class _Log:
    """The teacher's log, by window."""

    def __init__(self, surface: Surface, files: LogFiles, teacher: Run, now: datetime) -> None:
        self.surface, self.files, self.now = surface, files, now
        self.units: list[Unit] = list(list_units(surface, files))
        data = teacher.manifest.data
        self.train_window: Window = _window(data.train_window)
        self.holdout_window: Window = _window(data.holdout_window)

    def taught(
        self, teacher: ValueNetwork, window: Window, rows: int, device: torch.device, seed: int
    ) -> Taught:
        """A sample of a window's states with the teacher's answers."""
        # Duplicates stay: the same state twice teaches nothing wrong.
        reader = CleanReader(
            surface=self.surface, files=self.files, window=window, now=self.now, duplicates={}
        )
        arrays = sample(reader, tuple(self.units), rows=rows, seed=seed)
        if arrays is None or len(arrays["action"]) < 100:
            found = 0 if arrays is None else len(arrays["action"])
            raise LogError(
                f"{self.files.source}: {found} usable rows between {window[0].isoformat()} and "
                f"{window[1].isoformat()}, the run's window; distillation needs the run's own logs"
            )
        return teach(self.surface, teacher, arrays, device)

    def compare(
        self, teacher: ValueNetwork, student: ValueNetwork, holdout: Taught, max_bad_share: float
    ) -> Comparison:
        """Both networks' policies on the hold-out; needs Ray."""
        surface = self.surface
        scalarization_PM = SweepSettings(points=COMPARED_POINTS).scalarizations(surface)
        task = ScoringTask(
            surface=surface,
            files=self.files,
            window=self.holdout_window,
            scalarization_PM=scalarization_PM,
            now=self.now,
        )
        scored = [
            score_log(task, self.units, network, max_bad_share=max_bad_share)
            for network in (teacher.cpu(), student)
        ]
        rows, objectives = scored[0].rows, len(surface.objectives)
        confidence = 1.0 - (1.0 - CONFIDENCE) / (len(scalarization_PM) * objectives)
        results = [
            evaluate(
                SelfNormalizedIPS(),
                rows,
                [ChosenActions(one.chosen_NP[:, p].copy()) for one in scored],
                DeltaMethod(confidence=confidence),
            )
            for p in range(len(scalarization_PM))
        ]
        return Comparison(
            scalarization_PM=scalarization_PM,
            sameness=compare_policies(holdout, student, scalarization_PM),
            difference_PM=np.stack([result.lift_PR[1, :objectives] for result in results]),
            bounds_PM2=np.stack([result.bounds_PR2[1, :objectives] for result in results]),
            rows=len(rows),
        )


def _window(edges: tuple[str, str]) -> Window:
    return parse_instant(edges[0]), parse_instant(edges[1])


def describe(surface: Surface, comparison: Comparison) -> list[str]:
    """The comparison for people."""
    names = surface.objectives
    lines = [
        f"{'scalarization ' + '/'.join(names):<30}same action   expected gain kept   "
        f"difference on the logs, {CONFIDENCE:.0%} together"
    ]
    for p, scalarization in enumerate(comparison.scalarization_PM):
        told = "  ".join(
            f"{name} {comparison.difference_PM[p, m]:+.2%} "
            f"[{comparison.bounds_PM2[p, m, 0]:+.2%}, {comparison.bounds_PM2[p, m, 1]:+.2%}]"
            for m, name in enumerate(names)
        )
        weights = "/".join(f"{value:.2f}" for value in scalarization)
        lines.append(
            f"{weights:<30}{comparison.sameness.agreement_P[p]:>11.1%}"
            f"{comparison.sameness.kept_P[p]:>21.1%}   {told}"
        )
    verdict = "some interval excludes zero" if comparison.told_apart else "no interval excludes zero"
    lines.append(f"{comparison.rows:,} logged rows: {verdict}")
    return lines


def _manifest(
    teacher: Run,
    logs: str,
    network: NetworkConfig,
    settings: DistilSettings,
    progress: Progress,
    comparison: Comparison,
    seconds: float,
) -> RunManifest:
    old = teacher.manifest
    return old.model_copy(
        update={
            "run_id": new_run_id(teacher.surface),
            "created_at": datetime.now(UTC).isoformat(),
            "network": network.model_dump(mode="json"),
            "training": {
                **settings.model_dump(mode="json"),
                "distilled_from": old.run_id,
                "teacher": old.training,
                "logs": logs,
                "best_epoch": progress.best_epoch,
                "seconds": round(seconds, 1),
            },
            "metrics": {
                **{f"teacher_{name}": value for name, value in old.metrics.items()},
                "unexplained_share": unexplained_share(progress),
                "unexplained_effect_share": float(comparison.sameness.unexplained_M.max()),
                "same_action_share": float(comparison.sameness.agreement_P.mean()),
                "expected_gain_kept_share": float(comparison.sameness.kept_P.mean()),
            },
        }
    )


def _write(
    folder: Path,
    surface: Surface,
    student: ValueNetwork,
    manifest: RunManifest,
    progress: Progress,
    comparison: Comparison,
) -> None:
    write_atomically(folder / WEIGHTS, serialize(student.state_dict()))
    write_atomically(folder / SURFACE, surface.to_yaml())
    sameness = comparison.sameness
    write_json(
        folder / COMPARISON,
        {
            "teacher": manifest.training["distilled_from"],
            "rows": comparison.rows,
            "confidence": CONFIDENCE,
            "points": [
                {
                    "scalarization": comparison.scalarization_PM[p].tolist(),
                    "same_action": float(sameness.agreement_P[p]),
                    "expected_gain": float(sameness.gain_P[p]),
                    "gain_kept": float(sameness.kept_P[p]),
                    "expected_regret": float(sameness.regret_P[p]),
                    "differences": {
                        name: {
                            "difference": or_null(comparison.difference_PM[p, m]),
                            "interval": [or_null(edge) for edge in comparison.bounds_PM2[p, m]],
                        }
                        for m, name in enumerate(surface.objectives)
                    },
                }
                for p in range(len(comparison.scalarization_PM))
            ],
        },
    )
    write_json(folder / "learning.json", {"run_id": manifest.run_id, "epochs": progress.history})
    page = learning_html(
        f"Distillation of {manifest.training['distilled_from']} into {manifest.run_id}",
        progress.history,
        best_epoch=progress.best_epoch,
        constant_loss=progress.constant_loss,
    )
    write_atomically(folder / "learning.html", page)
    write_manifest(folder, manifest)
