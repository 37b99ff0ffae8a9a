"""``python -m triton_models`` as a person types it, and export on other surfaces."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.triton_models.conftest import Exported
from tests.support.runs import write_untrained_run
from tests.support.surfaces import small_surface_data
from triton_models import export
from triton_models.cli import main
from triton_models.errors import ParityError
from triton_models.repository import read_model
from triton_models.runs import load_run
from triton_models.served import input_rules
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def other_surface() -> Surface:
    """Three objectives, three controlled weights, no history, no context."""
    data = small_surface_data()
    data |= {"name": "other", "objectives": ["a", "b", "c"], "state": {"user_embedding": 3}}
    data["controlled"].append({"head": "save", "minimum": -1, "maximum": 1, "points": 2, "production": 0.5})
    return Surface.from_dict(data)


def test_another_surface_needs_force(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(exported.repository / VALUE_NETWORK, repository / VALUE_NETWORK)
    before = tree(repository)
    run = write_untrained_run(other_surface(), tmp_path / "run", seed=3)
    arguments = ["export", str(run), "--repository", str(repository)]

    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "differ in name ('other' against 'small')" in error
    assert "--force" in error
    assert tree(repository) == before

    assert main([*arguments, "--force", "--keep", "1"]) == 0
    out = capsys.readouterr().out
    assert "parity: largest difference" in out and f"{repository / VALUE_NETWORK / '2'}" in out
    model = read_model(repository, VALUE_NETWORK)
    assert model is not None
    assert model.versions == (2,)
    assert model.parameters["surface_fingerprint"] == other_surface().fingerprint


def test_one_objective_and_one_weight(tmp_path: Path) -> None:
    data = small_surface_data()
    data |= {"objectives": ["repin"], "controlled": data["controlled"][:1]}
    data["state"].pop("history")
    surface = Surface.from_dict(data)
    run = write_untrained_run(surface, tmp_path / "run", seed=1)
    report = export.export_run(run, tmp_path / "repository", backend="onnxruntime")
    assert report.parity <= 1e-5
    assert not (report.folder / "model.py").exists()
    assert input_rules(surface) == {
        "user_embedding": "finite",
        "scalarization": "simplex",
        "context": "codes:2,2",
    }


def test_a_model_that_differs_from_torch_is_never_published(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ONNX file of the fixture's run against a network with other weights."""
    wrong = (exported.report.folder / "model.onnx").read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda *_: wrong)
    run = write_untrained_run(load_run(exported.run).surface, tmp_path / "run", seed=99)
    assert main(["export", str(run), "--repository", str(tmp_path / "repository")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "differ from torch" in error
    assert not (tmp_path / "repository").exists()


def test_action_and_weights_are_part_of_parity(exported: Exported, surface: Surface) -> None:
    network = load_run(exported.run).load_network()
    cases = export.parity_cases(surface, random_cases=8)
    expected = export.reference_outputs(surface, network, cases)
    got = export.run_onnx((exported.report.folder / "model.onnx").read_bytes(), cases)
    export.compare(surface, expected, got)
    with pytest.raises(ParityError, match="chooses action"):
        export.compare(surface, expected, {**got, "action": expected["scores"].argmin(axis=1)[:, None]})
    with pytest.raises(ParityError, match="does not exist"):
        export.compare(surface, expected, {**got, "action": got["action"] * 0 - 1})
    with pytest.raises(ParityError, match="weights are not"):
        export.compare(surface, expected, {**got, "weights": got["weights"] + 1})
    with pytest.raises(ParityError, match="values are not"):
        export.compare(surface, expected, {**got, "values": got["values"] + 1e-3})
    nan = got["action_values"].copy()
    nan[3, 0, 0] = float("nan")
    with pytest.raises(ParityError, match="at case 3"):
        export.compare(surface, expected, {**got, "action_values": nan})


def test_graph_marks_impossible_rows_without_spoiling_others(exported: Exported, surface: Surface) -> None:
    """What an ``onnxruntime`` backend, which checks nothing, answers: weights NaN, action -1."""
    import numpy as np

    good = export.parity_cases(surface, random_cases=12)
    model = (exported.report.folder / "model.onnx").read_bytes()
    expected = export.run_onnx(model, good)
    bad = {name: array.copy() for name, array in good.items()}
    bad["user_embedding"][0, 0] = np.nan
    bad["history_embedding"][1] = np.inf
    bad["scalarization"][2] = [-1.0, 2.0]
    bad["scalarization"][3] = 0.0
    bad["scalarization"][4] = [np.nan, 1.0]
    bad["scalarization"][5] = [np.inf, 1.0]
    bad["context"][6] = [99, -7]  # unknown, not an error
    bad["history_action"][7] = 99
    got = export.run_onnx(model, bad)
    assert np.isnan(got["weights"][:6]).all() and (got["action"][:6] == -1).all()
    assert np.isfinite(got["weights"][6:]).all()
    for name in expected:
        np.testing.assert_allclose(got[name][8:], expected[name][8:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "absent"], "holds no finished run"),
        (["serve", "absent"], "no such model repository"),
        (["serve", "."], "the model repository is empty"),
    ],
)
def test_bad_arguments_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_runs_until_a_signal(table_repository: Path, number: signal.Signals) -> None:
    from triton_models.server import _choose_ports

    ports = _choose_ports("127.0.0.1", (None, None, None))
    names = ("--http-port", "--grpc-port", "--metrics-port")
    flags = [word for name, port in zip(names, ports, strict=True) for word in (name, str(port))]
    command = [sys.executable, "-m", "triton_models", "serve", str(table_repository), *flags]
    # An empty home must do.
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    door = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert door.stdout is not None
        lines = []
        while "ready:" not in (line := door.stdout.readline()):
            assert line, door.communicate()[1]
            lines.append(line)
        assert any(f"127.0.0.1:{ports[1]}" in line for line in lines)
        door.send_signal(number)
        out, error = door.communicate(timeout=30)
    finally:
        door.kill()
    assert (door.returncode, error) == (0, "")
    assert "stopping" in out
