"""The commands of the README, run as they stand there, in a copy of nothing but what it names.

Each fenced ``bash`` block is marked ``<!-- test: name -->``. Sizes and the port are replaced, nothing else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.stack import last_line
from serve.config import RankerConfig
from triton_models.surface import load_surface

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- test: ([^>]*?) -->\s*```bash\n(.*?)```", re.DOTALL)
BLOCKS = dict(BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
"""What activating the virtual environment does."""

SMALLER = {
    "--requests 300000": "--requests 6000 --candidates 40",
    "--workers 2": "--workers 2 --epochs 1",
    "--duration 30": "--duration 5",
    "source .venv/bin/activate": ":",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def block(name: str, *, port: int = 8000) -> str:
    text = BLOCKS[name]
    for old, new in SMALLER.items():
        text = text.replace(old, new)
    text = text.replace("8000", str(port))
    return f"set -eu\n{text}"


def run(text: str, folder: Path, *, timeout_s: float = 400) -> str:
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def get(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return dict(json.load(answer))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the repository's tracked top level, as links."""
    path = tmp_path_factory.mktemp("readme")
    for name in ("benchmarks", "ray_train", "triton_models", "serve", "pyproject.toml"):
        (path / name).symlink_to(ROOT / name)
    return path


@pytest.fixture(scope="module")
def steps(folder: Path) -> Path:
    """The block of the offline steps, run once."""
    run(block("steps"), folder)
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def sidecar(steps: Path, port: int) -> Iterator[None]:
    log = steps / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", "exec " + BLOCKS["serve"].replace("8000", str(port)).strip()],
            cwd=steps,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
        )
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None, f"serve ended: {last_line(log)}"
        assert time.monotonic() < deadline, f"serve is not ready: {last_line(log)}"
        try:
            get(f"http://127.0.0.1:{port}/readyz")
            break
        except OSError:
            time.sleep(0.3)
    yield
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


@pytest.mark.timeout(600)
def test_the_offline_steps_leave_what_the_readme_says(steps: Path) -> None:
    for name in ("run/frontier.html", "run/frontier.json", "run/learning.html", "run/run.json"):
        assert (steps / name).stat().st_size > 500, name
    assert (steps / "repository" / "value_network" / "config.pbtxt").is_file()
    assert (steps / "ranker_repository" / "ranker" / "config.pbtxt").is_file()


@pytest.mark.timeout(400)
def test_the_sidecar_answers_what_the_readme_says(sidecar: None, steps: Path, port: int) -> None:
    output = run(block("ask", port=port), steps)
    assert '"state_incomplete"' in output
    summary = json.loads((steps / "load" / "summary.json").read_text(encoding="utf-8"))
    assert summary["failures"] == 0


@pytest.mark.timeout(120)
def test_export_for_gpu_containers(steps: Path) -> None:
    run(block("gpu-export"), steps)
    config = (steps / "gpu_repository" / "value_network" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'backend: "onnxruntime"' in config
    assert "KIND_GPU" in config


def test_the_ranker_settings_are_settings() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    ranker = RankerConfig.model_validate(yaml.safe_load(example)["ranker"])
    assert ranker.heads is not None
    surface = load_surface(ROOT / "benchmarks" / "surfaces" / "homefeed.yaml")
    assert set(ranker.heads) == set(surface.heads)


def test_every_block_is_run_or_says_why_not() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("```bash") == len(BLOCK.findall(text))
    used = {"steps", "serve", "ask", "gpu-export"}
    assert {name for name in BLOCKS if not name.startswith("skip (")} == used
