"""What can be known about the embedded server without starting it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from triton_models import backend, guardian
from triton_models.errors import ServerError
from triton_models.server_log import LONGEST, last_meaningful_line, most_telling


@pytest.mark.parametrize("version", ["2.0.0", "2.1.3", "3.0", "10.0", "2.0.0rc1", "dev"])
def test_numpy_2_is_refused(version: str) -> None:
    with pytest.raises(ServerError, match=r"needs NumPy < 2.*pip install 'prl-puts\[embedded\]'"):
        backend.check_stub_packages({"numpy": version, "onnxruntime": "1"})


def test_numpy_1_is_accepted_and_absent_packages_are_named() -> None:
    backend.check_stub_packages({"numpy": "1.26.4", "onnxruntime": "1.31.1"})
    with pytest.raises(ServerError, match="needs onnxruntime there"):
        backend.check_stub_packages({"numpy": "1.26.4"})
    with pytest.raises(ServerError, match="needs numpy and onnxruntime there"):
        backend.check_stub_packages({})


def test_the_package_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ServerError, match=r"nvidia-pytriton; pip install 'prl-puts\[embedded\]'"):
        backend.package_folder()


def fake_package(folder: Path, python: str) -> Path:
    for name in (f"python_backend_stubs/{python}/{backend.STUB}", "backends/python/libtriton_python.so"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x")
    return folder


def test_the_backend_folder_gets_this_interpreters_stub(tmp_path: Path) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = backend.link_backends(fake_package(tmp_path / "package", python), tmp_path / "private")
    assert {p.name for p in (folder / "python").iterdir()} == {backend.STUB, "libtriton_python.so"}
    assert (folder / "python" / backend.STUB).read_text() == "x"


def test_no_stub_for_this_interpreter(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"has no stub for Python .*; it has 2\.7"):
        backend.link_backends(fake_package(tmp_path / "package", "2.7"), tmp_path / "private")


def test_environment_puts_this_interpreter_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    environment = backend.server_environment(tmp_path / "site" / "pytriton" / "tritonserver")
    assert environment["PATH"].split(":")[0] == str(Path(sys.prefix) / "bin")
    assert environment["LD_LIBRARY_PATH"] == f"{tmp_path}/site/nvidia_pytriton.libs:/mine"
    assert "PYTHONHOME" not in environment


LOG = """\
I1121 19:12:17.535321 9738 server.cc:674] "starting"
W1121 19:12:17.535321 9738 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1121 19:12:17.6 9738 cuda_memory_manager.cc:1] "CUDA memory pool disabled"
E1121 19:12:17.7 9738 model_lifecycle.cc:642] "failed to load 'm' version 1: Internal: no such file"
E1121 19:12:17.8 9738 main.cc:502] "error: creating server: Internal - failed to load all models"
I1121 19:12:18.0 9738 server.cc:1] "bye"
""".splitlines()


def test_the_telling_line_of_a_log() -> None:
    assert most_telling(LOG) == "failed to load 'm' version 1: Internal: no such file"
    assert most_telling(LOG[:3]) is None
    usage = [
        "/x/tritonserver: unrecognized option '--nope'",
        "Usage: tritonserver [options]",
        "Default is 0.",
    ]
    assert most_telling(usage) == usage[0]
    assert most_telling(["I0", "Segmentation fault"]) == "Segmentation fault"
    assert most_telling([]) is None
    long = most_telling(["x" * 9999])
    assert long is not None and len(long) == LONGEST


def test_only_the_newest_start_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(LOG) + "\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("Killed\n")
    assert last_meaningful_line(log, start) == "Killed"
    assert last_meaningful_line(tmp_path / "absent") is None


def test_guardian_knows_who_lives() -> None:
    assert guardian.is_running(os.getpid())
    assert not guardian.is_running(2**22 + 1)


def test_a_server_that_steps_back_does_so_with_all_it_starts() -> None:
    code = "import os; print(os.nice(0))"
    command = [
        sys.executable,
        "-I",
        "-S",
        guardian.__file__,
        str(os.getpid()),
        "puts_none_",
        "7",
        "as-usual",
        "all",
    ]
    # In a session of its own, as the server is started: a session's share is one for all in it.
    found = subprocess.run(
        [*command, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        start_new_session=True,
    )
    assert int(found.stdout) == min(19, os.nice(0) + 7)


def test_a_server_keeps_to_its_cores_with_all_it_starts() -> None:
    last = max(os.sched_getaffinity(0))
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    guard = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid()), "puts_none_", "0", "as-usual"]
    command = [*guard, str(last), sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == f"[{last}]"


def test_guardian_removes_exactly_its_own_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "SHARED_MEMORY", tmp_path)
    for name in ("puts_1_a_x", "puts_1_a_", "puts_1_b_x", "other"):
        (tmp_path / name).touch()
    guardian.remove_regions("")
    guardian.remove_regions("puts_1_a_")
    assert {p.name for p in tmp_path.iterdir()} == {"puts_1_b_x", "other"}
