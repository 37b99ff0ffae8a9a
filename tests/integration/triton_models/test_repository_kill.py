"""``kill -9`` at any moment leaves the repository serving what it served before, or the new version."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.killing import publish, read_back
from triton_models.repository import read_model

OLD = {"served": 3, "versions": [1, 2, 3]}


def steps(tmp_path: Path, work: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.support.killing", str(tmp_path), work]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    states = [json.loads(line) for line in done.stdout.splitlines()]
    assert [state["killed"] for state in states] == [True] * (len(states) - 1) + [False]
    return states


@pytest.mark.parametrize(
    ("work", "whole", "least"),
    [
        ("first", [{"served": None, "versions": []}, {"served": 1, "versions": [1]}], 20),
        (
            "publish",
            [
                OLD,
                {"served": 3, "versions": [1, 2, 3, 4]},  # renamed in, not yet served
                {"served": 4, "versions": [1, 2, 3, 4]},
                {"served": 4, "versions": [2, 3, 4]},  # one pruned
                {"served": 4, "versions": [3, 4]},
            ],
            40,
        ),
        ("select", [OLD, {"served": 2, "versions": [1, 2, 3]}], 10),
    ],
)
def test_death_before_every_step(tmp_path: Path, work: str, whole: list[dict[str, Any]], least: int) -> None:
    states = steps(tmp_path, work)
    assert len(states) > least, "too few steps were seen to mean anything"
    seen = []
    for number, state in enumerate(states, start=1):
        now = {name: state.get(name) for name in ("served", "versions")}
        assert state["problem"] == "" and now in whole, (number, state)
        seen.append(whole.index(now))
        if "next" not in state:
            continue
        assert state["next"] == max(now["versions"] or [0]) + 1
        assert state["beside"] == ["r"], "leftovers of the killed are cleared"
        assert state["in_model"] == ["config.pbtxt", "warmup"]
    assert seen == sorted(seen), "states come in the order of the steps, never back"
    assert set(seen) == set(range(len(whole))), "each state was seen"


def test_death_at_random_moments(tmp_path: Path) -> None:
    """Publish, select back, publish … in a loop, killed at arbitrary moments."""
    root = tmp_path / "r"
    code = textwrap.dedent(
        f"""
        from pathlib import Path
        from tests.support.killing import publish
        from triton_models.repository import read_model, select_version
        root = Path({str(root)!r})
        while True:
            present = read_model(root, "m").versions
            publish(root, present[-1] + 1, keep=3, select=present[-1] % 2 == 0)
            print("published", flush=True)
            select_version(root, "m", read_model(root, "m").versions[0])
        """
    )
    publish(root, 1)
    random.seed(0)
    newest = []
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.uniform(0.0, 0.06))
            process.kill()
        state = read_back(root)
        assert state["problem"] == "", state
        assert state["served"] in state["versions"]
        newest.append(state["versions"][-1])
    assert newest == sorted(newest) and newest[-1] > 4
    publish(root, newest[-1] + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_files_are_on_disk_before_their_version_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses power after the rename must not find empty files."""
    synced: set[str] = set()
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        synced.add(f"{os.fstat(descriptor).st_ino}")

    def rename(self: Path, target: Path) -> Path:
        if target.parent.name == "m":
            renamed.append(target.name)
            for path in [self, *self.rglob("*")]:
                assert str(path.stat().st_ino) in synced, path
        return real_rename(self, target)

    renamed: list[str] = []
    publish(tmp_path / "r", 1)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    publish(tmp_path / "r", 2)
    assert renamed == ["2"]
    folder = tmp_path / "r" / "m"
    for path in (folder, folder / "config.pbtxt", folder / "warmup"):
        assert str(path.stat().st_ino) in synced, path
    model = read_model(tmp_path / "r", "m")
    assert model is not None and model.served == 2
