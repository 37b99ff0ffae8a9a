"""The embedded server's life: supervised, replaced, ended with its owner, refused when it cannot work."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.triton_models.conftest import publish_table
from tests.support.inference import infer
from triton_models import backend, standing_aside
from triton_models.errors import PutsError, RepositoryError, ServerError
from triton_models.guardian import is_running
from triton_models.server import EmbeddedServer
from triton_models.supervise import Supervisor

REPLACED_WITHIN_S = 10.0


def eventually(condition: Callable[[], bool], within_s: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, f"not within {within_s} s"
        time.sleep(0.05)
    return time.monotonic() - began


def model_process(server_pid: int) -> int:
    """The stub: the child of the server in the server's process group."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == server_pid and int(fields[2]) == server_pid:
                    return int(folder.name)
            except (OSError, IndexError):
                continue
    raise AssertionError("no model process")


def regions(pid_of_owner: int) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"puts_{pid_of_owner}_*")]


def answers(address: str) -> Any:
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(address)
    try:
        x = np.array([[1.0, 2.0]], dtype=np.float32)
        return infer(client, "table", {"x": x, "code": np.array([[2]])})["y"].tolist()
    finally:
        client.close()


def test_supervisor_replaces_what_was_killed(table_repository: Path) -> None:
    others = set(regions(os.getpid()))
    with EmbeddedServer(table_repository) as server, Supervisor(server) as supervisor:
        addresses = (server.grpc_address, server.http_address, server.metrics_address)
        for count, victim in enumerate((model_process, lambda pid: pid), start=1):
            # Readiness would stay true when the model process is dead; only the probe tells.
            os.kill(victim(server.pid), signal.SIGKILL)
            eventually(lambda count=count: supervisor.replacements == count, REPLACED_WITHIN_S)
            assert (server.grpc_address, server.http_address, server.metrics_address) == addresses
            assert answers(server.grpc_address) == [[100.0, 200.0]]
        pid = server.pid
    assert not is_running(pid)
    eventually(lambda: not set(regions(os.getpid())) - others, 10)


@pytest.mark.parametrize("victim", ["server", "model process"])
def test_supervisor_replaces_what_was_stopped(table_repository: Path, victim: str) -> None:
    """A stopped process is alive, ready and silent. It must never be continued: a stopped model process that
    is makes the whole server abort."""
    others = set(regions(os.getpid()))
    with EmbeddedServer(table_repository) as server, Supervisor(server) as supervisor:
        address, pid = server.grpc_address, server.pid
        stopped = pid if victim == "server" else model_process(pid)
        before = set(regions(os.getpid())) - others
        os.kill(stopped, signal.SIGSTOP)
        eventually(lambda: supervisor.replacements == 1, REPLACED_WITHIN_S)
        # Triton itself may find out that a model process does not answer, before the probe's patience ends.
        assert re.search("no answer within|is not healthy", str(supervisor.last_problem))
        assert answers(address) == [[100.0, 200.0]]
        assert not is_running(stopped) and not is_running(pid)
        # What the dead server left in shared memory is removed by its guardian, not kept until the end.
        eventually(lambda: not before & set(regions(os.getpid())), 10)
    eventually(lambda: not set(regions(os.getpid())) - others, 10)


def test_a_replacement_stands_aside_until_it_works(table_repository: Path) -> None:
    def classes(group: int) -> set[int]:
        return {os.sched_getscheduler(thread) for thread in standing_aside.threads(group)}

    seen: set[int] = set()
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    with EmbeddedServer(table_repository, niceness=3) as server:
        assert classes(server.pid) == {os.SCHED_OTHER}  # at first nobody is being served
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                with contextlib.suppress(OSError, ServerError):
                    seen.update(classes(server.pid))
                time.sleep(0.005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            server.restart()
        finally:
            done.set()
            watcher.join()
        assert answers(server.grpc_address) == [[100.0, 200.0]]
        assert classes(server.pid) == {os.SCHED_OTHER}
        assert os.getpriority(os.PRIO_PROCESS, server.pid) == niceness
    assert (os.SCHED_IDLE in seen) == standing_aside.can_leave_idle()


def test_server_and_its_shared_memory_end_with_a_killed_owner(table_repository: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys, time
        from triton_models.server import EmbeddedServer
        server = EmbeddedServer({str(table_repository)!r})
        server.start()
        print(server.pid, flush=True)
        time.sleep(600)
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        stub = model_process(pid)
        assert regions(owner.pid)
    finally:
        owner.kill()
        owner.communicate()
    eventually(lambda: not is_running(pid) and not is_running(stub), 15)
    eventually(lambda: not regions(owner.pid), 5)


def test_server_outlives_the_thread_that_started_it(table_repository: Path, tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG would have killed it here."""
    server = EmbeddedServer(table_repository, log_path=tmp_path / "logs" / "triton.log")
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.5)
        assert server.probe(30.0), server.problem
        assert (tmp_path / "logs" / "triton.log").stat().st_size > 0
        with pytest.raises(ServerError, match="runs already"):
            server.start()
    finally:
        server.stop()
        server.stop()
    assert not server.is_alive()
    assert not server.probe()


def one_line(error: PutsError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_a_truncated_model_is_named_with_the_log(table_repository: Path) -> None:
    publish_table(table_repository, "broken")
    file = table_repository / "broken" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:40])
    server = EmbeddedServer(table_repository)
    with pytest.raises(ServerError) as caught:
        server.start()
    line = one_line(caught.value)
    assert "broken" in line and "ONNX Runtime cannot load it" in line and "log: " in line
    log = Path(line.rpartition("log: ")[2].rstrip(")"))
    assert log.is_file()
    assert not server.is_alive()
    server.stop()
    with EmbeddedServer(table_repository, models=("table",)) as good:
        assert good.probe(30.0)


def test_impossible_repositories_are_refused_at_once(tmp_path: Path, table_repository: Path) -> None:
    with pytest.raises(RepositoryError, match="no such model repository"):
        EmbeddedServer(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match="is empty"):
        EmbeddedServer(tmp_path / "empty")
    with pytest.raises(ServerError, match="no model ranker; it holds table"):
        EmbeddedServer(table_repository, models=("ranker",))


def test_a_taken_port_is_named(table_repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"grpc port {port} on 127.0.0.1 cannot be bound"):
            EmbeddedServer(table_repository, grpc_port=port).start()


def test_numpy_2_is_refused_before_anything_starts(
    table_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "stub_package_versions", lambda: {"numpy": "2.1.0", "onnxruntime": "1.31.1"})
    server = EmbeddedServer(table_repository)
    with pytest.raises(ServerError, match=r"NumPy 2\.1\.0; .* needs NumPy < 2"):
        server.start()
    assert not server.is_alive()


def test_a_start_that_crashes_is_tried_again(table_repository: Path) -> None:
    """As seen on a machine under load: ``terminate called … boost::interprocess::lock_exception``."""

    class CrashesOnce(EmbeddedServer):
        starts = 0

        def _wait_until_working(self) -> str | None:
            self.starts += 1
            if self.starts == 1:
                assert self._process is not None
                self._process.send_signal(signal.SIGABRT)
                self._process.wait()
                return "crashed"
            return super()._wait_until_working()

    with CrashesOnce(table_repository) as server:
        assert server.starts == 2
        assert answers(server.grpc_address) == [[100.0, 200.0]]
