"""``python -m ray_train experiment``: on a real Ray, in a world whose lifts are known."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ray_train.cli import main
from ray_train.experiment_report import load_experiment
from tests.support.experiments import TrueArm, make_experiment
from tests.support.frontiers import frontier_data
from tests.support.logged_decisions import write_decisions, write_parts
from tests.support.surfaces import small_surface
from triton_models.frontier import Frontier, write_frontier

pytestmark = pytest.mark.usefixtures("ray_cluster")

SURFACE = small_surface()
AS_OF = "2026-02-01T00:00:00+00:00"
ARMS = (
    TrueArm(name="control", lifts=(0, 0, 0), share=0.5),
    TrueArm(name="knee", lifts=(0.1, -0.1, 0), scalarization=(0.75, 0.25), share=0.5, fallback=0.1),
)
SHARES = "control=0.5,knee=0.5"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    frontier = Frontier.model_validate(frontier_data(SURFACE))
    decisions, events = make_experiment(
        SURFACE, ARMS, users=6000, sampled=0.5, explored=0.02, versions=2, frontier=frontier.fingerprint
    )
    write_decisions(SURFACE, decisions, folder / "decisions")
    write_parts(events, folder / "events")
    write_frontier(folder / "frontier.json", frontier)
    (folder / "token").write_text("secret-of-the-operator\n")
    return folder


def experiment(world: Path, out: Path, *arguments: str) -> int:
    named = ["--decisions", str(world / "decisions"), "--events", str(world / "events")]
    return main(["experiment", *named, "--as-of", AS_OF, "--out", str(out), *arguments])


@contextmanager
def sidecar(
    code: int = 200, *, ends: bool = False
) -> Iterator[tuple[str, list[tuple[str, str | None, Any]]]]:
    """Its address, and what was posted: path, authorization, body."""
    seen: list[tuple[str, str | None, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append((self.path, self.headers["authorization"], body))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"because" if code != 200 else json.dumps({"rolled_back": ends}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_true_lifts_are_found_checked_and_reported(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--frontier", str(world), "--shares", SHARES, "--bucket-mb", "0.1"]
    arguments += ["--guardrail", "p2p>=-1%", "--guardrail", "successful_session>=-0.2"]
    with sidecar() as (url, seen):
        told = ["--report-to", url, "--token-file", str(world / "token")]
        assert experiment(world, tmp_path, *arguments, *told) == 0
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert "reported: 3 lifts of policy version 2" in shown
    assert [(path, token) for path, token, _ in seen] == [
        ("/v1/policy/guardrail-metrics", "Bearer secret-of-the-operator")
    ] * 3
    found = load_experiment(tmp_path)
    assert found.arms == ("control", "knee")  # the static one is the control
    cell = found.cell("knee")
    assert cell is not None
    for name, lift in zip(found.outcomes, ARMS[1].lifts, strict=True):
        low, high = cell.effects[name].interval or (1, 0)
        assert low - 0.02 < lift < high + 0.02
    assert cell.fallback_share == pytest.approx(0.1, abs=0.02)
    assert [ratio.verdict for ratio in found.sample_ratios] == ["as_declared"] * 2
    verdicts = {item.outcome: item.verdict for item in found.guardrails}
    assert verdicts == {"p2p": "breached", "successful_session": "holds"}
    assert [(p.arm, p.cohort, p.point) for p in found.predictions] == [("knee", None, 0)]
    assert found.frontier is not None
    assert found.frontier.matches_decisions
    counts = found.decision_counts
    assert set(counts) == {"analysed", "explored"}
    assert counts["analysed"] == sum(c.requests for a in found.arms if (c := found.cell(a)))
    body = seen[-1][2]
    effect = found.cell("knee", 2)
    assert effect is not None
    assert body["lift"] == effect.effects["successful_session"].lift
    assert (tmp_path / "experiment.html").read_text().startswith("<!doctype html>")
    assert "A guardrail is breached." in shown


def test_a_ramp_over_days_of_other_outcomes_is_no_lift(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5 % on the first day, half on the second, whose outcomes are 30 % likelier; no effect in truth."""
    arms = [ARMS[0], TrueArm(name="knee", lifts=(0, 0, 0), scalarization=(0.75, 0.25))]
    decisions, events = make_experiment(SURFACE, arms, users=6000, days=2.0, ramp=(0.05, 0.5), rise=0.3)
    write_decisions(SURFACE, decisions, tmp_path / "decisions")
    write_parts(events, tmp_path / "events")
    assert experiment(tmp_path, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "shares changed under policy version 1: from 2026-01-01 00:00 knee" in shown
    found = load_experiment(tmp_path / "out")
    cell, control = found.cell("knee"), found.cell("control")
    assert cell is not None
    assert control is not None
    for name in found.outcomes:
        low, high = cell.effects[name].interval or (1, 0)
        assert low - 0.02 < 0.0 < high + 0.02
        pooled = (cell.effects[name].value or 0) / (control.effects[name].value or 1) - 1
        assert pooled > 0.08
    assert "Shares changed under policy version 1" in (tmp_path / "out" / "experiment.html").read_text()


def test_the_size_of_parts_does_not_matter(world: Path, tmp_path: Path) -> None:
    for name, size in (("one", "32"), ("many", "0.2")):
        assert experiment(world, tmp_path / name, "--bucket-mb", size) == 0
    one, many = (load_experiment(tmp_path / name) for name in ("one", "many"))
    for left, right in zip(one.cells, many.cells, strict=True):
        assert (left.users, left.requests) == (right.users, right.requests)
        for name in one.outcomes:
            assert left.effects[name].lift == pytest.approx(right.effects[name].lift, abs=1e-12)
    again = tmp_path / "again"
    assert experiment(world, again, "--bucket-mb", "0.2") == 0
    for file in ("experiment.json", "experiment.html"):
        assert (again / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--control", "nobody"], "there are control, knee"),
        (["--shares", "control=0.5"], "sum to 0.5, not to 1"),
        (["--shares", "control=1"], "arm 'knee', which has no share"),
        (["--guardrail", "dwell>=0"], "no such outcome"),
        (["--frontier", "nowhere.json"], "there is no frontier"),
        (["--confidence", "1"], "confidence"),
        (["--as-of", "2025-01-01"], "no decision without exploration is closed"),
        (["--report-to", "http://127.0.0.1:1"], "needs --token-file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert experiment(world, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_the_end_of_a_ramp_is_said(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sidecar(ends=True) as (url, seen):
        assert experiment(world, tmp_path, "--report-to", url, "--token-file", str(world / "token")) == 0
    assert "which ended the ramp" in capsys.readouterr().out
    assert len(seen) == 1


def test_a_sidecar_that_refuses_is_named_after_the_report_is_written(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sidecar(code=409) as (url, _):
        assert experiment(world, tmp_path, "--report-to", url, "--token-file", str(world / "token")) == 2
    error = capsys.readouterr().err
    assert "refused with 409: because" in error
    assert "secret" not in error
    assert (tmp_path / "experiment.html").exists()
