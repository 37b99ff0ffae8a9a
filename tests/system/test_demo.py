"""``make demo``, ``make up`` and ``make down``, with a small feed."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from benchmarks.stack import find_stack

SMALL = ["--requests", "6000", "--epochs", "1", "--online-requests", "600", "--load-duration", "4"]


def door(command: str, out: Path, *options: str, code: int = 0) -> str:
    """Run ``python -m benchmarks COMMAND`` and return what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", command, "--out", str(out), *options],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_the_demonstration_ends_with_its_screen_and_the_stack_comes_and_goes(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    text = door("demo", out, *SMALL)
    for expected in (
        "Operating points",
        "predicted",
        "measured",
        "control on",
        "fallbacks:",
        "frontier.html",
    ):
        assert expected in text, expected
    assert find_stack(out) is None
    figures = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert figures["load"]["failures"] == 0
    assert figures["load"]["choices"] > 0
    assert {row["requests"] for row in figures["online"]} == {600}

    text = door("up", out, *SMALL)
    assert text.count("there already") == 6
    stack = find_stack(out)
    assert stack is not None
    try:
        with urllib.request.urlopen(f"{stack.address}/readyz", timeout=10) as answer:
            assert json.load(answer)["ready"] is True
        assert "already running" in door("up", out, *SMALL, code=2)
    finally:
        assert "has ended" in door("down", out)
    assert find_stack(out) is None
    assert "nothing is running" in door("down", out)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "no demonstration made it" in door("demo", tmp_path, *SMALL, code=2)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert door("demo", tmp_path / "file", *SMALL, code=2).count("\n") == 1
