"""One complete turn of the loop, every stage a door that a person could call.

traffic through the sidecar with exploration → decisions + events → join → validate → fit → sweep → export →
roll-out into the running Triton → the chosen point applied by the policy API → A/B test in traffic through
the sidecar → experiment: measured lifts beside the predicted ones.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule

from benchmarks.demo import forced, run_door
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.world import World
from benchmarks.loop.choice import Choice, choose
from benchmarks.loop.engagement import DELAY_S
from benchmarks.loop.settings import CONTROL, TREATMENT, LoopSettings
from benchmarks.loop.traffic import Sent, instant, send, wait_for_log
from benchmarks.loop.truth import Truth
from benchmarks.materials import Materials, prepare_materials
from benchmarks.sidecar.hosting import ray_sidecar
from benchmarks.stack import Stack
from triton_models.errors import BenchmarkError
from triton_models.frontier import Frontier, load_frontier
from triton_models.runs import load_run

WINDOW_S = DELAY_S + 10.0
"""Attribution window: every simulated engagement is inside it."""
SEGMENT_S = 5.0
NETWORK_TIMEOUT_S = 60.0
SHORT_LOG = 10_000


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn came to."""

    settings: LoopSettings
    explored: Sent
    tested: Sent
    joined_rows: int
    choice: Choice
    scalarization: tuple[float, ...]
    frontier: Frontier
    truth: dict[str, tuple[float, float, float]]
    experiment: dict[str, Any]


class Loop:
    """Conducts the turn."""

    def __init__(self, settings: LoopSettings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.out = settings.out
        self.decisions = self.out / "decisions"
        self.events = self.out / "events"
        self.run_folder = self.out / "run"

    def turn(self) -> Turn:
        """All of it.

        Raises:
            PutsError: a stage failed; its own message is above.
        """
        s = self.settings
        _refuse_used(self.out)
        say = self.console.print
        materials = prepare_materials(self.out / "materials", seed=s.seed, bodies=64, say=say)
        world = World(WorldConfig(seed=s.seed, requests=s.requests), materials.surface)
        self._rule("serve: two tritonservers, the sidecar, its policies and its decision log")
        with ray_sidecar(self.out / "stack", self._arguments(materials)) as stack:
            explored = self._explore(world, stack)
            joined = self._learn(materials, explored)
            self._roll_out(materials, stack)
            frontier = load_frontier(self.run_folder)
            self._await_network(stack, frontier.run.run_id)
            choice = self._choose(frontier)
            scalarization = frontier.candidate(choice.tested).scalarization
            self._apply_test(stack, choice, tuple(scalarization), frontier)
            tested, truth = self._send(
                "A/B test", world, stack, first=s.requests, count=s.test_requests, treatment=TREATMENT
            )
            self._await_log(explored.requests + tested.requests)
        experiment = self._experiment(materials, tested)
        return Turn(
            settings=s,
            explored=explored,
            tested=tested,
            joined_rows=joined,
            choice=choice,
            scalarization=tuple(scalarization),
            frontier=frontier,
            truth=truth.lifts(seed=s.seed),
            experiment=experiment,
        )

    # ------------------------------------------------------------------ stages

    def _arguments(self, materials: Materials) -> list[str]:
        config = self.out / "sidecar.yaml"
        settings = {
            "policy_store": {"url": f"sqlite:///{self.out / 'policies.db'}"},
            "access": {"allow_local_changes": True},
            "decision_log": {
                "folder": str(self.decisions),
                "sample_rate": 1.0,
                "segment_s": SEGMENT_S,
            },
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        arguments = ["--config", str(config), "--surface", str(materials.surface_file)]
        arguments += ["--repository", str(materials.repository), "--budget-ms", str(self.settings.budget_ms)]
        return [*arguments, "--ranker-repository", str(materials.ranker_repository)]

    def _explore(self, world: World, stack: Stack) -> Sent:
        share = self.settings.exploration
        policy = {
            "arms": [{"name": CONTROL, "choice": "static"}],
            "exploration": {"share": share, "cap": share, "burst": 10_000},
        }
        apply_policy(stack.address, {"policy": policy, "reason": "explore, to learn from it"})
        sent, _ = self._send("exploration", world, stack, first=0, count=self.settings.requests)
        self._await_log(sent.requests)
        return sent

    def _send(
        self,
        title: str,
        world: World,
        stack: Stack,
        *,
        first: int,
        count: int,
        treatment: str | None = None,
    ) -> tuple[Sent, Truth]:
        s = self.settings
        self._rule(f"{title}: {count:,} requests through {stack.address}/v1/{s.route}")
        columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("requests", total=count)
            sent, truth = send(
                world,
                stack.address,
                first=first,
                count=count,
                route=s.route,
                callers=s.callers,
                events=self.events,
                seed=s.seed,
                treatment=treatment,
                progress=lambda done: bar.advance(task, done),
            )
        self.console.print(f"{sent.as_json()}", highlight=False, soft_wrap=True)
        return sent, truth

    def _await_log(self, rows: int) -> None:
        found = wait_for_log(self.decisions, rows)
        self.console.print(f"decision log: {found:,} decisions in segments")

    def _learn(self, materials: Materials, explored: Sent) -> int:
        logs, run, surface = str(self.out / "logs"), str(self.run_folder), str(materials.surface_file)
        stages = {
            "join: decisions and events to an exploration log": [
                *("join", "--surface", surface, "--out", logs, *self._attribution(explored)),
            ],
            "validate: is this log usable?": ["validate", logs, "--surface", surface],
            "fit: the value network on it": [
                *("fit", logs, "--surface", surface, "--out", run),
                *("--workers", str(self.settings.workers), "--epochs", str(self.settings.epochs)),
                # Windows are of time: a short burst that stalls for half a second must leave rows in each.
                *(["--selection-share", "0.45"] if self.settings.requests < SHORT_LOG else []),
            ],
            "sweep: operating points valued on its last part": [
                *("sweep", logs, "--run", run, "--by", "cohort"),
                *(["--estimator", self.settings.estimator] if self.settings.estimator else []),
            ],
        }
        for title, command in stages.items():
            run_door(title, ["ray_train", *command], self.console)
        return _rows(self.out / "logs")

    def _attribution(self, sent: Sent) -> list[str]:
        complete = instant(sent.ended_us + int((WINDOW_S + 5) * 1e6))
        options = ["--decisions", str(self.decisions), "--events", str(self.events), "--as-of", complete]
        return [
            *options,
            "--attribution-window",
            f"{WINDOW_S:g}s",
            "--late-limit",
            "1s",
            "--metric",
            "hide=any",
        ]

    def _roll_out(self, materials: Materials, stack: Stack) -> None:
        repository = str(materials.repository)
        export = ["triton_models", "export", str(self.run_folder), "--repository", repository, "--hold"]
        export += forced(self.run_folder, self.console)
        run_door("export: beside the network that is served", export, self.console)
        roll = ["triton_models", "rollout", str(stack.details["triton"]), "--repository", repository]
        run_door("rollout: into the running Triton", roll, self.console)

    def _await_network(self, stack: Stack, run_id: str) -> None:
        """Until the sidecar has read whose network it asks now: the decisions say so, and it looks at times.

        Raises:
            BenchmarkError: it has not, long after it should.
        """
        deadline = time.monotonic() + NETWORK_TIMEOUT_S
        while True:
            with urllib.request.urlopen(f"{stack.address}/readyz", timeout=30.0) as response:
                servers = json.loads(response.read())["value_network"]
            if all(server.get("run_id") == run_id for server in servers):
                return
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the sidecar does not see run {run_id} after the roll-out: {servers}")
            time.sleep(0.2)

    def _choose(self, frontier: Frontier) -> Choice:
        verdict = load_run(self.run_folder).manifest.verdict
        choice = choose(frontier, verdict, asked_for=self.settings.operating_point)
        self._rule(f"choice: {choice.recommended} is recommended, {choice.tested} is tested")
        self.console.print(choice.why, markup=False, highlight=False)
        return choice

    def _apply_test(
        self, stack: Stack, choice: Choice, scalarization: tuple[float, ...], frontier: Frontier
    ) -> None:
        self._rule(f"policy: half of the users get {choice.tested}, half the production weights")
        body = {
            "policy": {
                "arms": [
                    {"name": CONTROL, "share": 0.5, "choice": "static"},
                    {"name": TREATMENT, "share": 0.5, "choice": list(scalarization)},
                ],
            },
            "reason": f"A/B test of {choice.tested}; recommended: {choice.recommended}, {choice.why}",
            "frontier": json.loads((self.run_folder / "frontier.json").read_text(encoding="utf-8")),
        }
        self.console.print(f"in force: {apply_policy(stack.address, body)}", highlight=False, soft_wrap=True)

    def _experiment(self, materials: Materials, tested: Sent) -> dict[str, Any]:
        folder = self.out / "experiment"
        command = ["ray_train", "experiment", "--out", str(folder), "--surface", str(materials.surface_file)]
        command += ["--frontier", str(self.run_folder), "--control", CONTROL]
        command += ["--shares", f"{CONTROL}=0.5,{TREATMENT}=0.5", *self._attribution(tested)]
        command += ["--after", instant(tested.began_us)]
        run_door("experiment: what the arms did", command, self.console)
        found: dict[str, Any] = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
        return found

    def _rule(self, title: str) -> None:
        self.console.print()
        self.console.print(Rule(f"[bold]{title}[/]", align="left"))


def apply_policy(address: str, body: dict[str, Any]) -> dict[str, Any]:
    """``POST /v1/policies``; the activation.

    Raises:
        BenchmarkError: it was refused; why.
    """
    request = urllib.request.Request(
        f"{address}/v1/policies",
        data=json.dumps({"author": "benchmarks loop", **body}).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30.0) as response:
            found: dict[str, Any] = json.loads(response.read())
            return found
    except urllib.error.HTTPError as error:
        with error:
            raise BenchmarkError(
                f"the policy was refused: {error.read().decode(errors='replace')}"
            ) from error
    except OSError as error:
        raise BenchmarkError(f"{address} does not answer: {error}") from error


def _refuse_used(out: Path) -> None:
    """A turn begins in a new folder: policies and decisions of another one would be taken for its own.

    Raises:
        BenchmarkError: there is something in it.
    """
    keep = {"materials"}
    if out.exists() and any(item.name not in keep for item in out.iterdir()):
        raise BenchmarkError(f"{out} is not empty; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    # The network of an earlier turn would be served.
    shutil.rmtree(out / "materials" / "repository", ignore_errors=True)


def _rows(folder: Path) -> int:
    import pyarrow.parquet as parquet

    return sum(parquet.read_metadata(file).num_rows for file in folder.rglob("*.parquet"))
