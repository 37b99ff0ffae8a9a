"""The folder of a new log: there when it is whole, and else not at all, on any filesystem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ray_train.joining import SUMMARY, _staged_remote, staged_log
from triton_models.errors import LogError


class NoFolderMoves(MemoryFileSystem):
    """As object stores are: files can be moved, folders cannot."""

    protocol = "nofoldermoves"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    pseudo_dirs = [""]  # noqa: RUF012

    def mv(self, path1: str, path2: str, recursive: bool = False, **_: Any) -> None:
        if self.isdir(path1):
            raise NotImplementedError("folders cannot be moved")
        super().mv(path1, path2)


def write(filesystem: pafs.FileSystem, path: str) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"x")


def names(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    found = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    return sorted(item.path for item in found if item.type == pafs.FileType.File)


@pytest.mark.parametrize("kind", ["memory", "no folder moves", "subtree"])
def test_remote_folders_appear_whole(kind: str, tmp_path: Path) -> None:
    if kind == "subtree":
        filesystem: pafs.FileSystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    else:
        inner = NoFolderMoves() if kind == "no folder moves" else fsspec.filesystem("memory")
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(inner))
    filesystem.create_dir("bucket")
    with _staged_remote(filesystem, "bucket/logs") as folder:
        for name in ("part-00000.parquet", "part-00001.parquet", SUMMARY):
            write(filesystem, f"{folder}/{name}")
        assert all("/_logs." in f"/{path}" for path in names(filesystem, "bucket"))  # readers skip it
    wanted = [f"bucket/logs/{name}" for name in (SUMMARY, "part-00000.parquet", "part-00001.parquet")]
    assert [path.lstrip("/") for path in names(filesystem, "bucket")] == sorted(wanted)


def test_a_failure_leaves_nothing() -> None:
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(NoFolderMoves()))
    filesystem.create_dir("failed")

    def stop_half_way() -> None:
        with _staged_remote(filesystem, "failed/logs") as folder:
            write(filesystem, f"{folder}/part-00000.parquet")
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        stop_half_way()
    assert names(filesystem, "failed") == []


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_local_folders(prefix: str, tmp_path: Path) -> None:
    with staged_log(f"{prefix}{tmp_path}/logs") as (filesystem, folder):
        write(filesystem, f"{folder}/part-00000.parquet")
        assert not (tmp_path / "logs").exists()
    assert (tmp_path / "logs" / "part-00000.parquet").exists()
    with pytest.raises(LogError, match="exists already"), staged_log(f"{prefix}{tmp_path}/logs"):
        pass
