"""The real tritonserver as a child process: started, checked by inference, stopped without a trace."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from triton_models import backend, guardian, standing_aside
from triton_models.errors import ServerError
from triton_models.probe import ServerProbe
from triton_models.repository import model_names
from triton_models.server_log import last_meaningful_line

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
PROBE_TIMEOUT_S = 2.0
STOP_GRACE_S = 5.0
EXIT_TIMEOUT_S = 3
SHM_BYTES = 8 * 1024**2
"""Shared memory of one model instance at its start; it grows when a batch needs more."""
START_ATTEMPTS = 3
"""A crash is tried again, and so are free ports that somebody else took before the server bound them."""

ASIDE_S = 4.0
"""How long a server that is started anew stands aside at most: cores may have no time to spare at all."""

UNSAMPLED_RATE = 2**31 - 1
"""Of the requests without a trace context one in so many is traced: what 2.51 has for "none"."""


class EmbeddedServer:
    """``tritonserver`` 2.51 from ``nvidia-pytriton``, serving a repository with the Python backend.

    Explicit model control: every model of the repository (or those named) is loaded at start, and the
    repository is not polled. The server dies with the process that started it, however that ends.

    Args:
        repository: Folder of models.
        host: Address that HTTP, gRPC and metrics bind.
        http_port, grpc_port, metrics_port: None takes a free one. They stay the same over restarts.
        models: Names to load; None means all in the repository.
        log_path: Where the server writes its log; None is a temporary file, kept when a start fails.
        start_timeout_s: How long :meth:`start` waits for the first real inference.
        niceness: 0 to 19. Above 0 other processes of the machine come first (``man 2 nice``): for a value
            network beside a sidecar on the same cores, whose answer has time.
        cores: Numbers of the cores that it may use; empty: all that this process may. What is asked one after
            the other, as a model with one instance is, needs one; handing over to another core takes time.
        otlp_url: Collector (OTLP over HTTP, ``http://host:4318/v1/traces``) that spans go to of requests
            that carry a W3C trace context, recorded or not: 2.51 does not look at the flag. None: no tracing.

    Raises:
        RepositoryError: the repository is missing or empty.
        ServerError: from :meth:`start`, when the server cannot be used.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        host: str = "127.0.0.1",
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        models: tuple[str, ...] | None = None,
        log_path: str | Path | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        niceness: int = 0,
        cores: tuple[int, ...] = (),
        otlp_url: str | None = None,
    ) -> None:
        if not 0 <= niceness <= 19:
            raise ServerError(f"niceness is 0 to 19, got {niceness}")
        strangers = sorted(set(cores) - os.sched_getaffinity(0))
        if strangers:
            allowed = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise ServerError(f"core {strangers[0]} is not one that this process may use: {allowed}")
        self._niceness = niceness
        self._cores = ",".join(map(str, cores)) or guardian.ALL_CORES
        self._otlp_url = otlp_url
        self.repository = Path(repository).resolve()
        self.host = host
        self.models = _chosen_models(self.repository, models)
        self._wanted_ports = (http_port, grpc_port, metrics_port)
        self._ports: tuple[int, int, int] | None = None
        self._log_path = Path(log_path).resolve() if log_path is not None else None
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._probe: ServerProbe | None = None
        self._folder: Path | None = None
        self._problem: str | None = None
        self._environment_checked = False
        self._place = guardian.AS_USUAL

    # ------------------------------------------------------------ life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and block until every model has answered a real inference.

        Raises:
            ServerError: the package is missing, the interpreter is unusable, a port is taken, or a model
                does not load or answer; the message quotes the log and says where it lies.
        """
        if self.is_alive():
            raise ServerError(f"the embedded server runs already (pid {self.pid})")
        self._forget_process()
        package = backend.package_folder()
        if not self._environment_checked:
            backend.check_stub_packages(backend.stub_package_versions())
        for attempt in range(1, START_ATTEMPTS + 1):
            self._ports = self._ports or _choose_ports(self.host, self._wanted_ports)
            self._launch(package)
            problem = self._wait_until_working()
            if problem is None:
                logger.info("tritonserver %s serves %s at %s", self.pid, self.models, self.grpc_address)
                return
            # A start on a busy machine can abort on a lock of the shared memory (Boost waits 10 s).
            crashed = self._process is not None and (self._process.poll() or 0) < 0
            taken = None in self._wanted_ports and "in use" in problem
            log, ports = self.log_path, self._ports
            self._end_process(grace_s=0.0)
            self._ports = ports if crashed else None
            if attempt < START_ATTEMPTS and (crashed or taken):
                logger.warning("tritonserver did not start, trying again: %s", problem)
                continue
            raise ServerError(f"the embedded tritonserver did not start: {problem} (log: {log})")

    def stop(self) -> None:
        """End the server and its model processes; harmless when it does not run."""
        self._end_process(grace_s=STOP_GRACE_S)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def restart(self) -> None:
        """Replace a server that no longer works by a new one on the same ports, without grace.

        One with a niceness stands aside altogether until it works (:mod:`triton_models.standing_aside`).

        Raises:
            ServerError: as :meth:`start`.
        """
        ports = self._ports
        self._end_process(grace_s=0.0)
        self._ports = ports
        if self._niceness:
            self._place = guardian.LAST if standing_aside.can_leave_idle() else guardian.LAST_OF_SESSIONS
        try:
            self.start()
        except ServerError:
            # Clients know these ports: the next attempt must use them again.
            self._ports = ports
            raise
        finally:
            self._place = guardian.AS_USUAL

    def _launch(self, package: Path) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="puts-triton-"))
            backend.link_backends(package, self._folder)
        environment = backend.server_environment(package, self._folder / "lib")
        if not self._environment_checked:
            backend.check_stub_starts(self._folder, environment)
            self._environment_checked = True
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        prefix = guardian.region_prefix(os.getpid(), uuid.uuid4().hex[:8])
        if (orphans := guardian.remove_orphans()) > 0:
            logger.warning("removed %d shared-memory regions of servers whose owner is gone", orphans)
        guard = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid()), prefix]
        guard += [str(self._niceness), self._place, self._cores]
        with open(self.log_path, "ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*guard, *self._command(package, prefix)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._folder,
                # A session of its own: Ctrl-C in the terminal reaches the owner, which ends it in order.
                start_new_session=True,
            )

    def _command(self, package: Path, prefix: str) -> list[str]:
        assert self._ports is not None and self._folder is not None  # noqa: S101
        http, grpc, metrics = self._ports
        options = {
            "model-repository": self.repository,
            "backend-directory": self._folder / "backends",
            "model-control-mode": "explicit",
            "http-address": self.host,
            "grpc-address": self.host,
            "metrics-address": self.host,
            "http-port": http,
            "grpc-port": grpc,
            "metrics-port": metrics,
            "allow-gpu-metrics": "false",
            "exit-timeout-secs": EXIT_TIMEOUT_S,
        }
        python = {"shm-region-prefix-name": prefix, "shm-default-byte-size": SHM_BYTES}
        return [
            str(package / "bin" / "tritonserver"),
            "--disable-auto-complete-config",
            *(f"--{name}={value}" for name, value in options.items()),
            *(f"--backend-config=python,{name}={value}" for name, value in python.items()),
            *(f"--load-model={name}" for name in self.models),
            *(f"--trace-config={setting}" for setting in _tracing(self._otlp_url)),
        ]

    def _wait_until_working(self) -> str | None:
        """Wait for the first real inference; what went wrong, or None."""
        self._probe = ServerProbe(self.grpc_address, self.models)
        began = time.monotonic()
        aside = self._place != guardian.AS_USUAL
        problem: str | None = "it never became ready"
        while (waited_s := time.monotonic() - began) < self._start_timeout_s:
            if aside and waited_s > ASIDE_S:
                aside = self._step_forward()
            if not self.is_alive():
                return last_meaningful_line(self.log_path, self._log_start) or "it ended without a word"
            if self._probe.server_ready():
                if aside:  # what follows is measured like any other answer
                    aside = self._step_forward()
                problem = self._probe.run(PROBE_TIMEOUT_S)
                if problem is None:
                    return None
                if "no answer within" not in problem:
                    return problem
            time.sleep(0.05)
        return f"{problem} (waited {self._start_timeout_s:g} s)"

    def _step_forward(self) -> bool:
        """Count as always from now on; False: it does not stand aside any more."""
        standing_aside.step_forward(self.pid, self._niceness)
        return False

    def _end_process(self, grace_s: float) -> None:
        process = self._process
        if process is not None:
            if process.poll() is None and grace_s > 0:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace_s)
            # The group holds the server's model processes as well, which may outlive it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._forget_process()

    def _forget_process(self) -> None:
        if self._probe is not None:
            self._probe.close()
        self._probe = None
        self._process = None

    # ------------------------------------------------------------ state

    def is_alive(self) -> bool:
        """Whether the server process runs; says nothing about its models."""
        return self._process is not None and self._process.poll() is None

    def probe(self, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
        """Whether every model answers a real inference now; :attr:`problem` says why not."""
        if self._probe is None or not self.is_alive():
            self._problem = "the server process is not running"
        else:
            self._problem = self._probe.run(timeout_s)
        return self._problem is None

    @property
    def problem(self) -> str | None:
        """What the last :meth:`probe` found wrong."""
        return self._problem

    @property
    def pid(self) -> int:
        """Process id of tritonserver, which is also its process group.

        Raises:
            ServerError: it does not run.
        """
        if self._process is None:
            raise ServerError("the embedded server does not run")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """The server's log."""
        if self._log_path is not None:
            return self._log_path
        if self._folder is None:
            raise ServerError("the embedded server does not run")
        return self._folder / "server.log"

    def _address(self, which: int) -> str:
        if self._ports is None:
            raise ServerError("the embedded server has no ports before its start")
        return f"{self.host}:{self._ports[which]}"

    @property
    def http_address(self) -> str:
        """``host:port`` of the HTTP endpoint."""
        return self._address(0)

    @property
    def grpc_address(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return self._address(1)

    @property
    def metrics_address(self) -> str:
        """``host:port`` of the Prometheus endpoint."""
        return self._address(2)


def _chosen_models(repository: Path, models: tuple[str, ...] | None) -> tuple[str, ...]:
    present = model_names(repository)
    missing = sorted(set(models or ()) - set(present))
    if missing:
        raise ServerError(f"{repository}: holds no model {', '.join(missing)}; it holds {', '.join(present)}")
    return tuple(models) if models else present


def _choose_ports(host: str, wanted: tuple[int | None, int | None, int | None]) -> tuple[int, int, int]:
    """Check the stated ports and find free ones for the others, all held open until all are found."""
    with contextlib.ExitStack() as stack:
        ports = []
        for name, port in zip(("http", "grpc", "metrics"), wanted, strict=True):
            taken = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taken.bind((host, port or 0))
            except (OSError, OverflowError) as error:
                raise ServerError(
                    f"{name} port {port or 'any'} on {host} cannot be bound ({error}); "
                    f"choose another with --{name}-port"
                ) from error
            ports.append(int(taken.getsockname()[1]))
    return ports[0], ports[1], ports[2]


def _tracing(otlp_url: str | None) -> list[str]:
    if otlp_url is None:
        return []
    return [
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        f"rate={UNSAMPLED_RATE}",
        f"opentelemetry,url={otlp_url}",
        "opentelemetry,resource=service.name=value_network",
    ]
