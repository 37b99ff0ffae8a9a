"""Versions appear whole, keep what they must, and survive ``kill -9`` at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from triton_models import repository as module
from triton_models.errors import ConfigurationError, RepositoryError
from triton_models.repository import exchange, model_names, publish_model, read_model, versions
from triton_models.tensors import TensorSpec

X = (TensorSpec("x", "FP32", (2,)),)
Y = (TensorSpec("y", "FP32", (2,)),)


def publish(root: Path, content: bytes = b"onnx", **options: Any) -> int:
    return publish_model(root, name="m", onnx_bytes=content, inputs=X, outputs=Y, **options)


def stored(root: Path) -> list[int]:
    return versions(root / "m")


def test_first_version(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "repository"
    assert publish(root, b"first", parameters={"run_id": "r"}) == 1
    assert (root / "m" / "1" / "model.onnx").read_bytes() == b"first"
    assert "TritonPythonModel" in (root / "m" / "1" / "model.py").read_text()
    model = read_model(root, "m")
    assert model is not None
    assert (model.versions, model.parameters["run_id"]) == ((1,), "r")
    assert model.parameters["input_rules"] == '{"x": "finite"}'
    assert model_names(root) == ("m",)
    assert [p.name for p in root.parent.iterdir()] == ["repository"], "nothing is left beside it"


def test_the_newest_are_kept_and_numbers_go_on(tmp_path: Path) -> None:
    for number in range(1, 12):
        assert publish(tmp_path / "r", str(number).encode(), keep=3) == number
    assert stored(tmp_path / "r") == [9, 10, 11]
    for number in (9, 10, 11):
        assert (tmp_path / "r" / "m" / str(number) / "model.onnx").read_bytes() == str(number).encode()
    assert publish(tmp_path / "r", keep=1) == 12
    assert stored(tmp_path / "r") == [12]


def test_onnxruntime_needs_no_python_file(tmp_path: Path) -> None:
    publish(tmp_path, backend="onnxruntime")
    assert [p.name for p in (tmp_path / "m" / "1").iterdir()] == ["model.onnx"]


def test_folders_that_are_no_version_are_not_counted(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "m" / "draft").mkdir()
    (tmp_path / "m" / "7").write_text("a file")
    assert stored(tmp_path) == [1]
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes").mkdir()
    assert model_names(tmp_path) == ("m",)


@pytest.mark.parametrize("supported", [True, False])
def test_a_failing_switch_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    publish(tmp_path / "r", b"old", parameters={"run_id": "old"})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "_switch" if supported else "_sync_tree", fail)
    with pytest.raises(RepositoryError, match="disk full"):
        publish(tmp_path / "r", b"new", parameters={"run_id": "new"})
    model = read_model(tmp_path / "r", "m")
    assert model is not None and model.versions == (1,) and model.parameters["run_id"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_without_atomic_exchange_it_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "exchange", lambda *_: False)
    assert [publish(tmp_path / "r"), publish(tmp_path / "r")] == [1, 2]
    assert stored(tmp_path / "r") == [1, 2]


def test_exchange_swaps(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if exchange(tmp_path / "a", tmp_path / "b"):
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
    assert not exchange(tmp_path / "a", tmp_path / "absent")


def test_killed_publishers_leave_a_whole_repository(tmp_path: Path) -> None:
    """Publish in a loop, ``kill -9`` at arbitrary moments: content, config and version always agree."""
    code = textwrap.dedent(
        f"""
        from triton_models.repository import publish_model, versions
        from triton_models.tensors import TensorSpec
        from pathlib import Path
        root = Path({str(tmp_path / "r")!r})
        while True:
            number = max(versions(root / "m"), default=0) + 1
            publish_model(root, name="m", onnx_bytes=(str(number) * 50_000).encode(), keep=2,
                          inputs=(TensorSpec("x", "FP32", (2,)),), outputs=(TensorSpec("y", "FP32", (2,)),),
                          parameters={{"run_id": str(number)}})
            print(number, flush=True)
        """
    )
    publish(tmp_path / "r", b"1" * 50_000, parameters={"run_id": "1"})
    for attempt in range(2):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 + 0.013 * attempt)
            process.kill()
        model = read_model(tmp_path / "r", "m")
        assert model is not None
        newest = model.versions[-1]
        assert model.parameters["run_id"] == str(newest)
        for version in model.versions:
            content = (tmp_path / "r" / "m" / str(version) / "model.onnx").read_bytes()
            assert content == (str(version) * 50_000).encode()
            assert (tmp_path / "r" / "m" / str(version) / "model.py").exists()
    assert newest > 2
    publish(tmp_path / "r")
    assert [p.name for p in tmp_path.iterdir()] == ["r"], "leftovers of the killed are cleared"


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "1st", "a b"])
def test_names_that_could_leave_the_repository(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="model name"):
        publish_model(tmp_path, name=name, onnx_bytes=b"x", inputs=X, outputs=Y)


def test_impossible_requests(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="keep must be at least 1"):
        publish(tmp_path / "r", keep=0)
    with pytest.raises(ConfigurationError, match="is empty"):
        publish(tmp_path / "r", b"")
    with pytest.raises(ConfigurationError, match="max_batch_size"):
        publish(tmp_path / "r", max_batch_size=0)
    assert not (tmp_path / "r").exists()
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="cannot be written"):
        publish(tmp_path / "file")


def test_reading_what_is_not_there_or_broken(tmp_path: Path) -> None:
    assert read_model(tmp_path, "m") is None
    with pytest.raises(RepositoryError, match="is empty"):
        model_names(tmp_path)
    with pytest.raises(RepositoryError, match="no such model repository"):
        model_names(tmp_path / "absent")
    publish(tmp_path)
    (tmp_path / "m" / "config.pbtxt").write_text("name: [[[")
    with pytest.raises(RepositoryError, match="not a Triton model configuration"):
        read_model(tmp_path, "m")
    (tmp_path / "m" / "config.pbtxt").write_bytes(os.urandom(64) + b"\xff")
    with pytest.raises(RepositoryError):
        read_model(tmp_path, "m")
