"""Nobody ever sees half a file or half a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triton_models.files import staged_directory, write_atomically, write_json


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.json"
    write_atomically(file, "ä")
    assert file.read_bytes() == "ä".encode()
    write_json(file, {"a": [1, None]})
    assert file.read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
    assert file.stat().st_mode & 0o777 == 0o644
    assert os.listdir(file.parent) == ["file.json"]  # noqa: PTH208


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


def test_not_a_number_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_directory_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with staged_directory(target) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "a").write_text("1")
        assert not target.exists()
    assert (target / "inner" / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(FileExistsError), staged_directory(target):
        pytest.fail("must not be entered")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fill() -> None:
        with staged_directory(tmp_path / "run") as staging:
            (staging / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fill()
    assert list(tmp_path.iterdir()) == []
