"""Versions appear whole, one of them is served by name, and what must stay stays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from triton_models import repository as module
from triton_models.config_pbtxt import config_parameters, served_versions
from triton_models.errors import ConfigurationError, RepositoryError
from triton_models.repository import (
    PublishedModel,
    model_names,
    publish_model,
    read_model,
    require_model,
    select_version,
    version_config,
    versions,
)
from triton_models.repository_files import ROLLOUT_LOCK, locked
from triton_models.selection import next_history, selection_config
from triton_models.tensors import TensorSpec

X = (TensorSpec("x", "FP32", (2,)),)
Y = (TensorSpec("y", "FP32", (2,)),)


def publish(root: Path, content: bytes = b"onnx", **options: Any) -> int:
    return publish_model(root, name="m", onnx_bytes=content, inputs=X, outputs=Y, **options)


def stored(root: Path) -> list[int]:
    return versions(root / "m")


def model(root: Path) -> PublishedModel:
    return require_model(root, "m")


def test_first_version(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "repository"
    assert publish(root, b"first", parameters={"run_id": "r"}) == 1
    assert (root / "m" / "1" / "model.onnx").read_bytes() == b"first"
    assert "TritonPythonModel" in (root / "m" / "1" / "model.py").read_text()
    assert (model(root).versions, model(root).served, model(root).parameters["run_id"]) == ((1,), 1, "r")
    assert model(root).parameters["input_rules"] == '{"x": "finite"}'
    assert served_versions(model(root).config) == (1,)
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
    assert {p.name for p in (tmp_path / "m" / "1").iterdir()} == {
        "model.onnx",
        "version.pbtxt",
    }


def test_folders_that_are_no_version_are_not_counted(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "m" / "draft").mkdir()
    (tmp_path / "m" / "7").write_text("a file")
    assert stored(tmp_path) == [1]
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes").mkdir()
    assert model_names(tmp_path) == ("m",)


@pytest.mark.parametrize("step", ["sync_tree", "_add", "write_config"])
def test_a_failing_step_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    publish(tmp_path / "r", b"old", parameters={"run_id": "old"})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(RepositoryError, match="disk full"):
        publish(tmp_path / "r", b"new", parameters={"run_id": "new"})
    now = model(tmp_path / "r")
    assert (now.versions, now.served, now.parameters["run_id"]) == ((1,), 1, "old")
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_old_versions_that_cannot_be_removed_do_not_spoil_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path / "r")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no permission")

    monkeypatch.setattr(module, "_prune", fail)
    assert publish(tmp_path / "r", keep=1) == 2
    assert model(tmp_path / "r").served == 2
    assert "old versions cannot be removed: no permission" in caplog.text


# ------------------------------------------------------------ which version is served


def held(root: Path, content: bytes = b"held", **options: Any) -> int:
    return publish(root, content, select=False, **options)


def test_a_held_version_is_there_and_not_served(tmp_path: Path) -> None:
    publish(tmp_path, b"1", parameters={"run_id": "one"})
    before = (tmp_path / "m" / "config.pbtxt").read_bytes()
    assert held(tmp_path, b"2", parameters={"run_id": "two"}) == 2
    assert (tmp_path / "m" / "config.pbtxt").read_bytes() == before
    assert (model(tmp_path).versions, model(tmp_path).served) == ((1, 2), 1)
    assert config_parameters(version_config(tmp_path, "m", 2))["run_id"] == "two"


def test_the_first_version_is_served_even_when_held(tmp_path: Path) -> None:
    assert held(tmp_path) == 1
    assert model(tmp_path).served == 1


def test_selecting_changes_the_whole_description(tmp_path: Path) -> None:
    publish(tmp_path, b"1", parameters={"run_id": "one"}, max_batch_size=8)
    publish(tmp_path, b"2", parameters={"run_id": "two"}, max_batch_size=16)
    assert (model(tmp_path).served, model(tmp_path).parameters["run_id"]) == (2, "two")
    select_version(tmp_path, "m", 1)
    now = model(tmp_path)
    assert (now.served, now.parameters["run_id"], now.config.max_batch_size) == (1, "one", 8)
    assert served_versions(now.config) == (1,)
    select_version(tmp_path, "m", 2)
    assert (model(tmp_path).served_before, model(tmp_path).config.max_batch_size) == ((1,), 16)
    # Chosen again, it stays as it is.
    before = (tmp_path / "m" / "config.pbtxt").stat().st_mtime_ns
    select_version(tmp_path, "m", 2)
    assert (tmp_path / "m" / "config.pbtxt").stat().st_mtime_ns == before


def test_the_served_version_is_never_pruned(tmp_path: Path) -> None:
    for _ in range(3):
        publish(tmp_path)
    select_version(tmp_path, "m", 1)
    for _ in range(4):
        held(tmp_path, keep=2)
    assert stored(tmp_path) == [1, 6, 7]
    assert model(tmp_path).served == 1
    publish(tmp_path, keep=2)
    assert stored(tmp_path) == [7, 8]


@pytest.mark.parametrize(
    ("version", "serving", "history", "expected"),
    [
        (2, 1, (), (1,)),
        (3, 2, (1,), (1, 2)),
        (2, 3, (1, 2), (1,)),  # back
        (1, 3, (1, 2), ()),  # two back
        (2, 2, (1,), (1,)),  # nothing new
        (9, 8, tuple(range(100, 130)), (*range(111, 130), 8)),  # bounded
    ],
)
def test_history(version: int, serving: int, history: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert next_history(version, serving, history) == expected


def test_a_version_that_is_not_whole_cannot_be_selected(tmp_path: Path) -> None:
    warm = {"warmup_batch_sizes": (1, 4), "input_rules": {"x": "simplex"}}
    for _ in range(2):
        publish(tmp_path, b"content", **warm)
    folder = tmp_path / "m" / "1"
    with pytest.raises(RepositoryError, match=r"m/7: no such version; the repository holds 1, 2"):
        select_version(tmp_path, "m", 7)
    with pytest.raises(RepositoryError, match="holds no model absent; it holds m"):
        select_version(tmp_path, "absent", 1)
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-1])
    with pytest.raises(RepositoryError, match=r"model.onnx: is not the file that was published"):
        select_version(tmp_path, "m", 1)
    (folder / "model.onnx").write_bytes(content)
    for missing in (folder / "model.onnx", folder / "model.py", *(tmp_path / "m" / "warmup").iterdir()):
        there = missing.read_bytes()
        missing.unlink()
        with pytest.raises(RepositoryError, match=f"{missing.name}: is missing"):
            select_version(tmp_path, "m", 1)
        missing.write_bytes(there)
    (folder / "version.pbtxt").unlink()
    with pytest.raises(RepositoryError, match=r"version.pbtxt is missing; export its run again"):
        select_version(tmp_path, "m", 1)
    assert model(tmp_path).served == 2


def test_warm_up_files_of_every_version_stay_and_of_none_go(tmp_path: Path) -> None:
    def warm_files() -> set[str]:
        return {path.name for path in (tmp_path / "m" / "warmup").iterdir()}

    rules = {"x": "simplex"}
    publish(tmp_path, keep=2, input_rules=rules, warmup_batch_sizes=(1,))
    publish(tmp_path, keep=2, input_rules=rules, warmup_batch_sizes=(4,))
    assert warm_files() == {"x.FP32.1x2.ones", "x.FP32.4x2.ones"}
    selection_config(tmp_path, "m", 1)
    publish(tmp_path, keep=2, input_rules=rules, warmup_batch_sizes=(4,))
    assert warm_files() == {"x.FP32.4x2.ones"}


def test_a_repository_of_an_older_release_is_taken_over(tmp_path: Path) -> None:
    """There, "the latest" was served, and versions did not carry a configuration."""
    publish(tmp_path, b"old", parameters={"run_id": "old"})
    (tmp_path / "m" / "1" / "version.pbtxt").unlink()
    file = tmp_path / "m" / "config.pbtxt"
    text = file.read_text()
    start = text.index("version_policy")
    end = text.index("}\n}\n", start) + len("}\n}\n")
    file.write_text(f"{text[:start]}version_policy {{ latest {{ num_versions: 1 }} }}\n{text[end:]}")
    assert (model(tmp_path).served, served_versions(model(tmp_path).config)) == (1, ())

    held(tmp_path, b"new")
    assert (model(tmp_path).served, served_versions(model(tmp_path).config)) == (1, (1,))
    select_version(tmp_path, "m", 2)
    select_version(tmp_path, "m", 1)
    assert model(tmp_path).parameters["run_id"] == "old"


def test_one_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path, ROLLOUT_LOCK, wait=False),
        pytest.raises(RepositoryError, match="another process works on this repository"),
        locked(tmp_path, ROLLOUT_LOCK, wait=False),
    ):
        pytest.fail("must not be entered")


def test_further_files_lie_beside_the_model(tmp_path: Path) -> None:
    publish(tmp_path, files={"cases.npz": b"cases"})
    assert (tmp_path / "m" / "1" / "cases.npz").read_bytes() == b"cases"


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
