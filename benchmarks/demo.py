"""The whole loop on real parts, one stage after the other, and one screen at the end.

Every stage but the online measurement is a door that a person could call (``python -m …``), run as a
process of its own, so that the demonstration is also what the README says and what a cluster job runs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule

from benchmarks.feed.world import load_world
from benchmarks.online import Measured, measure
from benchmarks.report import print_screen
from benchmarks.stack import Stack, find_stack, start_stack, stop_stack
from ray_train.estimators import FloatArray
from triton_models.errors import BenchmarkError
from triton_models.files import write_json
from triton_models.frontier import Frontier, load_frontier
from triton_models.runs import load_run

FRACTION_PRECISION = 6

MARKER = ".demonstration"
"""Marks a folder as ours to remove."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Sizes of the demonstration; the defaults fit two cores and ten minutes."""

    out: Path
    requests: int = 300_000
    """Logged requests of the simulated feed."""
    seed: int = 1
    epochs: int = 6
    online_requests: int = 20_000
    """New requests that every operating point is measured on."""
    load_duration_s: int = 30
    load_users: int = 2
    budget_ms: float = 25.0


@dataclass(frozen=True)
class Folders:
    """Where the demonstration keeps its things."""

    root: Path
    logs: Path = field(init=False)
    run: Path = field(init=False)
    repository: Path = field(init=False)
    ranker: Path = field(init=False)
    load: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ("logs", "run", "repository", "ranker", "load"):
            object.__setattr__(self, name, self.root / name)


def _stages(settings: DemoSettings, folders: Folders) -> list[tuple[str, Path, list[str]]]:
    """Title, output and command of every offline stage."""
    surface = Path(__file__).parent / "surfaces" / "homefeed.yaml"
    logs, run = str(folders.logs), str(folders.run)
    count, seed = str(settings.requests), str(settings.seed)
    return [
        (
            "simulate: exploration logs of a feed in which the truth is known",
            folders.logs,
            ["benchmarks", "simulate", "--requests", count, "--days", "21", "--seed", seed, "--out", logs],
        ),
        (
            "validate: is this log usable?",
            folders.root / "validated",
            ["ray_train", "validate", logs, "--surface", str(surface)],
        ),
        (
            "fit: value network with Ray Train, two workers",
            folders.run / "run.json",
            [
                *("ray_train", "fit", logs, "--surface", str(surface), "--out", run),
                *("--workers", "2", "--epochs", str(settings.epochs)),
                *_resume(folders),
            ],
        ),
        (
            "sweep: 25 scalarizations valued on the hold-out week",
            folders.run / "frontier.html",
            ["ray_train", "sweep", logs, "--run", run, "--by", "cohort"],
        ),
        (
            "export: value network to a Triton repository, parity checked",
            folders.repository / "value_network" / "config.pbtxt",
            ["triton_models", "export", run, "--repository", str(folders.repository)],
        ),
        (
            "ranker: the feed's reference ranker to a repository of its own",
            folders.ranker / "ranker" / "config.pbtxt",
            ["benchmarks", "ranker", "--logs", logs, "--repository", str(folders.ranker)],
        ),
    ]


def _resume(folders: Folders) -> list[str]:
    """``--resume`` if an interrupted fit lies there."""
    return ["--resume"] if (folders.run / "fit.json").exists() else []


def forced(run: Path, console: Console) -> list[str]:
    """``--force`` if the gate did not pass the run, and the verdict on the screen either way."""
    verdict = load_run(run).manifest.verdict
    if verdict is None:
        return []
    console.print()
    console.print(f"[bold]verdict of fit:[/] {escape(verdict.text)}", highlight=False)
    if verdict.passed:
        return []
    console.print("[bold]export would stop here; the demonstration goes on with --force, to show the rest[/]")
    return ["--force"]


def prepare(settings: DemoSettings, console: Console) -> Folders:
    """Run every offline stage whose output is not there yet.

    Raises:
        BenchmarkError: a stage failed; its own message is above.
    """
    folders = Folders(settings.out)
    folders.root.mkdir(parents=True, exist_ok=True)
    (folders.root / MARKER).touch()
    for title, output, command in _stages(settings, folders):
        if output.exists():
            console.print(f"[dim]{title}: there already ({output})[/]")
            continue
        if command[1] == "export":
            command = [*command, *forced(folders.run, console)]
        run_door(title, command, console)
        if command[1] == "validate":
            output.touch()
    return folders


def run_door(title: str, command: Sequence[str], console: Console) -> None:
    """Run ``python -m …`` with its output passed through, and say how long it took.

    Raises:
        BenchmarkError: it exited with a code other than 0.
    """
    console.print()
    console.print(Rule(f"[bold]{title}[/]", align="left"))
    console.print(f"[dim]python -m {' '.join(command)}[/]")
    sys.stdout.flush()
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    if code:
        raise BenchmarkError(f"the stage {command[0]} {command[1]} failed with exit code {code}; see above")
    console.print(f"[dim]{time.monotonic() - start:.0f} s[/]")


def start(settings: DemoSettings, console: Console) -> tuple[Folders, Stack]:
    """Prepare what is missing and start the serving stack.

    Raises:
        BenchmarkError: a stage failed, or the stack did not start.
    """
    if find_stack(settings.out) is not None:
        raise BenchmarkError(f"a stack is already running for {settings.out}; end it with make down")
    folders = prepare(settings, console)
    frontier = load_frontier(folders.run)
    console.print()
    console.print(Rule("[bold]serve: two tritonservers and the Ray Serve sidecar[/]", align="left"))
    arguments = ["--repository", str(folders.repository), "--ranker-repository", str(folders.ranker)]
    arguments += ["--frontier", str(folders.run / "frontier.json")]
    arguments += ["--operating-point", default_operating_point(frontier)]
    arguments += ["--budget-ms", str(settings.budget_ms), "--port", "0"]
    console.print(f"[dim]python -m serve up {' '.join(arguments)}[/]")
    begin = time.monotonic()
    stack = start_stack(folders.root, arguments)
    console.print(f"ready at {stack.address} after {time.monotonic() - begin:.0f} s")
    return folders, stack


def default_operating_point(frontier: Frontier) -> str:
    """The candidate to serve: one that degrades nothing if there is one, else the knee."""
    for label in ("non_degrading", "knee", *frontier.candidates):
        if label in frontier.candidates:
            return label
    raise BenchmarkError("the frontier has no candidate operating point; fit on more rows")


def demonstrate(settings: DemoSettings, console: Console) -> None:
    """The whole demonstration; always ends the stack that it started."""
    begin = time.monotonic()
    _start_afresh(settings.out)
    folders, stack = start(settings, console)
    try:
        frontier = load_frontier(folders.run)
        measured = measure_candidates(settings, folders, frontier, stack, console)
        load = run_load(settings, folders, stack, console)
    finally:
        stop_stack(settings.out)
    write_json(folders.root / "demo.json", {"online": online_as_json(frontier, measured), "load": load})
    print_screen(console, frontier=frontier, measured=measured, load=load, root=folders.root)
    console.print(f"[dim]the whole demonstration took {(time.monotonic() - begin) / 60:.1f} minutes[/]")


def _start_afresh(out: Path) -> None:
    """Remove an earlier demonstration; anything else in the way is somebody's and stays.

    Raises:
        BenchmarkError: the folder holds something that no demonstration made, or its stack still runs.
    """
    if find_stack(out) is not None:
        raise BenchmarkError(f"a stack is already running for {out}; end it with make down")
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise BenchmarkError(f"{out} is not empty and no demonstration made it; choose another --out")
        shutil.rmtree(out)


def measure_candidates(
    settings: DemoSettings, folders: Folders, frontier: Frontier, stack: Stack, console: Console
) -> Measured:
    """Measure the frontier's candidates on new requests, through the running Triton."""
    console.print()
    console.print(Rule("[bold]online: the operating points on new requests, through Triton[/]", align="left"))
    world = load_world(folders.logs)
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("requests", total=settings.online_requests)
        points = [frontier.candidate(label) for label in frontier.candidates]
        heads = frontier.surface_object.controlled_heads
        return measure(
            world,
            address=stack.details["triton"],
            scalarizations=[point.scalarization for point in points],
            static_weights=[[point.mean_weights[head] for head in heads] for point in points],
            first_request=settings.requests,
            requests=settings.online_requests,
            progress=lambda done: bar.advance(task, done),
        )


def run_load(settings: DemoSettings, folders: Folders, stack: Stack, console: Console) -> dict[str, Any]:
    """Locust against the sidecar; its summary."""
    command = ["benchmarks", "locust", "--host", stack.address, "--logs", str(folders.logs)]
    command += ["--users", str(settings.load_users), "--duration", str(settings.load_duration_s)]
    run_door(
        "locust: ranking under load, control on and off in turn",
        [*command, "--out", str(folders.load)],
        console,
    )
    summary: dict[str, Any] = json.loads((folders.load / "summary.json").read_text(encoding="utf-8"))
    return summary


def online_as_json(frontier: Frontier, measured: Measured) -> list[dict[str, Any]]:
    """The measured lifts by candidate, as plain data."""
    return [
        {
            "candidate": label,
            "scalarization": list(frontier.candidate(label).scalarization),
            "requests": measured.requests,
            "personalized": _lifts(measured.outcomes, measured.lift_PR[p], measured.bounds_PR2[p]),
            "static_of_same_mean_weights": _lifts(
                measured.outcomes, measured.static_lift_SR[p], measured.static_bounds_SR2[p]
            ),
        }
        for p, label in enumerate(frontier.candidates)
    ]


def _lifts(outcomes: Sequence[str], lift_R: FloatArray, bounds_R2: FloatArray) -> dict[str, Any]:
    return {
        name: {
            "lift": round(float(lift_R[r]), FRACTION_PRECISION),
            "interval": [round(float(bound), FRACTION_PRECISION) for bound in bounds_R2[r]],
        }
        for r, name in enumerate(outcomes)
    }
