"""The commands of the README, run as they stand there, in a copy of nothing but what it names.

Each fenced ``bash`` block is marked ``<!-- test: name -->``. Sizes and the port are replaced, nothing else.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.stack import last_line
from serve.config import RankerConfig, SidecarConfig
from triton_models.surface import load_surface

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- test: ([^>]*?) -->\s*```bash\n(.*?)```", re.DOTALL)
BLOCKS = dict(BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
"""What activating the virtual environment does."""

SMALLER = {
    "--requests 300000": "--requests 6000 --candidates 40",
    "--workers 2": "--workers 1 --epochs 1",
    "--duration 30": "--duration 5",
    # From so few rows nothing is learned that a student could equal; that it can is shown elsewhere.
    "--out small_run": "--out small_run --epochs 1 --force",
    # Nor would its gate pass the run itself.
    "export run --repository": "export run --force --repository",
    "export small_run --repository": "export small_run --force --repository",
    "source .venv/bin/activate": ":",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def block(name: str, *, port: int = 8000, dashboard: int = 8265, shared: str = "/shared") -> str:
    text = BLOCKS[name]
    for old, new in SMALLER.items():
        text = text.replace(old, new)
    text = text.replace("8000", str(port)).replace("8265", str(dashboard)).replace("/shared/", f"{shared}/")
    return f"set -eu\n{text}"


def run(text: str, folder: Path, *, timeout_s: float = 400, extra: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=ENVIRONMENT | (extra or {}),
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
    # Another test may have both cores for a second; that the ranker's time is limited is tested elsewhere.
    (steps / "patient.yaml").write_text("ranker: {timeout_ms: 10000}\n", encoding="utf-8")
    command = BLOCKS["serve"].replace("8000", str(port)).strip() + " --config patient.yaml"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
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


@pytest.mark.timeout(400)
def test_the_policy_of_the_running_sidecar(sidecar: None, steps: Path, port: int) -> None:
    output = run(block("policy", port=port) + block("drift", port=port), steps)
    assert "policy 1 is in force (it was 0)" in output
    assert '"share": 0.01' in output
    assert "policy 0 is in force again (it was 1)" in output
    assert output.count('"recommendation": null') == 2
    assert "policy 2 is in force (it was 0)" in output


@pytest.fixture(scope="module")
def distilled(steps: Path) -> Path:
    run(block("distil"), steps)
    return steps


@pytest.mark.timeout(400)
def test_versions_of_a_running_server(distilled: Path) -> None:
    """Its ports are the only thing that is replaced."""
    ports = {number: str(free_port()) for number in ("8500", "8501", "8502")}

    def with_ports(text: str) -> str:
        return re.sub("|".join(ports), lambda found: ports[found.group()], text)

    log = distilled / "triton.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["bash", "-c", "exec " + with_ports(BLOCKS["triton"]).strip()],
            cwd=distilled,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
        )
    try:
        deadline = time.monotonic() + 90
        while b"ready:" not in log.read_bytes():
            assert server.poll() is None and time.monotonic() < deadline, last_line(log)
            time.sleep(0.2)
        output_of = run(with_ports(block("versions")), distilled)
        assert "VERDICT   yes" in output_of
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0


@pytest.mark.timeout(120)
def test_export_for_gpu_containers(steps: Path) -> None:
    run(block("gpu-export"), steps)
    config = (steps / "gpu_repository" / "value_network" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'backend: "onnxruntime"' in config
    assert "KIND_GPU" in config


def submit_when_an_agent_is_there(text: str, token: dict[str, str]) -> None:
    """The dashboard answers some seconds before the node's agent, who takes the jobs, does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            run(text, ROOT, extra=token)
            return
        except AssertionError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


@pytest.mark.timeout(500)
def test_a_training_job_on_a_ray_cluster(steps: Path) -> None:
    """`ray job submit` against a cluster of our own; a folder stands for shared storage."""
    dashboard, gcs = free_port(), free_port()
    shared = steps / "shared"
    shared.mkdir()
    (shared / "logs").symlink_to(steps / "logs")
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--head", "--block", "--num-cpus=4", f"--port={gcs}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--node-ip-address=127.0.0.1"]
    # Without one of its own, a second cluster on this machine has no agent, and a job nobody to take it.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    # Ray's Unix sockets lie below it, and their paths must be short.
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    command += [f"--temp-dir={temporary}", "--include-dashboard=true"]
    # The cluster asks for a token, as Ray's clusters do by default where they find one.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "RAY_ADDRESS"} | token
    with (steps / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            assert head.poll() is None, last_line(steps / "ray.log")
            assert time.monotonic() < deadline, "the Ray dashboard did not come up"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/version", timeout=2).close()
                break
            except urllib.error.HTTPError as error:
                error.close()
                break  # it is up, and wants the token
            except OSError:
                time.sleep(0.5)
        submit_when_an_agent_is_there(block("job", dashboard=dashboard, shared=str(shared)), token)
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)
    assert (shared / "run" / "run.json").is_file()


def test_the_ranker_settings_are_settings() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    example, more, logged = found
    ranker = RankerConfig.model_validate(example["ranker"])
    assert ranker.heads is not None
    surface = load_surface(ROOT / "benchmarks" / "surfaces" / "homefeed.yaml")
    settings = SidecarConfig.from_dict({"surface": surface.to_dict(), **more, **logged})
    assert settings.decision_log is not None and settings.decision_log.user_ids == "hashed"
    assert (len(settings.value_network.addresses), settings.num_replicas) == (2, 4)
    assert set(ranker.heads) == set(surface.heads)


def test_every_block_is_run_or_says_why_not() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("```bash") == len(BLOCK.findall(text))
    used = {"steps", "distil", "serve", "ask", "policy", "drift", "gpu-export", "triton", "versions", "job"}
    assert {name for name in BLOCKS if not name.startswith("skip (")} == used
