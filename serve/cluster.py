"""Ray and Ray Serve for ``python -m serve up``: started for us alone, bound to loopback, ended with us."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.config import SidecarConfig
from serve.ray_ingress import CALLBACK
from triton_models.errors import ConfigurationError, ServerError, first_line
from triton_models.local_ray import start_local_ray

logger = logging.getLogger(__name__)

APPLICATION = "sidecar"
START_TIMEOUT_S = 120.0
LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
"""One line a request would be a good part of the sidecar's work; the metrics count them."""

OBJECT_STORE_BYTES = 100 * 1024**2


def is_direct(config: SidecarConfig, *, ray_address: str | None) -> bool:
    """Whether replicas take their requests themselves.

    On somebody's cluster the proxy is used: direct ingress is set in the environment that the cluster's
    own processes were started with, which we cannot reach. ``RAY_SERVE_ENABLE_DIRECT_INGRESS=0`` in our own
    environment asks for the proxy as well.

    Raises:
        ConfigurationError: direct ingress is asked for where it cannot be had.
    """
    ingress = config.http.ingress
    refused = ray_address is not None or os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "0"
    if ingress == "direct" and refused:
        raise ConfigurationError(
            "http.ingress: direct is set where a cluster is started (RAY_SERVE_ENABLE_DIRECT_INGRESS=1 in "
            "the environment of its processes); with --ray-address say proxy or auto"
        )
    return not refused and (ingress == "direct" or (ingress == "auto" and config.num_replicas == 1))


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def ingress_environment(config: SidecarConfig, *, direct: bool) -> dict[str, str]:
    """Environment that Ray reads when it is imported and started.

    Directly, a replica takes its requests itself (one hop less: FACTS.md has 0.6 ms against 13), each on a
    port of its own; otherwise they share one port behind Ray Serve's proxy.
    """
    port = str(config.http.port)
    # Ray's proxy hands requests on as they come: only a replica's own port is meant here.
    callback = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK} if direct else {}
    return {
        **callback,
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1" if direct else "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": port,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(config.http.port + config.num_replicas),  # exclusive
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        # A replaced replica must get its port back at once, and wait for it to be free.
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray starts its workers at niceness 15, meant for batch work: whatever else runs on the machine, the
        # value network and the ranker among it, would come before the sidecar.
        "RAY_worker_niceness": "0",
    }


@contextmanager
def ray_running(config: SidecarConfig, *, ray_address: str | None) -> Iterator[None]:
    """Ray: a local one for us alone, or somebody's cluster; ours is ended on exit.

    Enter it before anything that has threads: Ray forks its processes, and a fork of a process in which
    gRPC or a supervisor is at work can leave a child that never starts.

    Raises:
        ServerError: it did not start, or the cluster cannot be joined; one line.
    """
    direct = is_direct(config, ray_address=ray_address)
    for name, value in ingress_environment(config, direct=direct).items():
        os.environ.setdefault(name, value)
    import ray

    # Ray Serve announces the address of its proxy, which is not the sidecar's.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if ray_address:
        try:
            ray.init(address=ray_address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise ServerError(f"cannot join the Ray cluster at {ray_address}: {first_line(error)}") from error
    else:
        start_local_ray(
            num_cpus=config.num_replicas + 1,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address="127.0.0.1",
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def sidecar_deployed(config: SidecarConfig, *, ray_address: str | None) -> Iterator[None]:
    """The sidecar on Ray Serve, on a Ray that runs; on exit what was deployed here is ended.

    Raises:
        ServerError: it did not come up; the reason in one line.
    """
    from ray import serve as ray_serve

    from serve.app import build

    direct = is_direct(config, ray_address=ray_address)
    try:
        options: dict[str, Any] = {
            "host": config.http.host,
            # With direct ingress Ray starts its proxy all the same; it must not take the replica's port.
            "port": free_port(config.http.host) if direct else config.http.port,
            "keep_alive_timeout_s": config.http.keep_alive_s,
        }
        if config.http.tls is not None:
            # Replicas run in folders of their own.
            options["ssl_certfile"] = str(Path(config.http.tls.certificate).resolve())
            options["ssl_keyfile"] = str(Path(config.http.tls.private_key).resolve())
        ray_serve.start(http_options=options, logging_config=LOGGING)
        try:
            ray_serve.run(build(config.to_dict()), name=APPLICATION, logging_config=LOGGING)
        except (RuntimeError, TimeoutError) as error:
            raise ServerError(f"Ray Serve did not start the sidecar: {first_line(error)}") from error
        for address in base_urls(config, direct=direct):
            wait_until_alive(address)
        yield
    finally:
        if ray_address:
            ray_serve.delete(APPLICATION)
        else:
            ray_serve.shutdown()  # type: ignore[no-untyped-call]


def base_urls(config: SidecarConfig, *, direct: bool) -> tuple[str, ...]:
    """Where the sidecar answers."""
    host = "127.0.0.1" if config.http.host in ("0.0.0.0", "::") else config.http.host
    scheme = "https" if config.http.tls is not None else "http"
    count = config.num_replicas if direct else 1
    return tuple(f"{scheme}://{host}:{config.http.port + i}" for i in range(count))


def wait_until_alive(address: str) -> None:
    """Wait for ``/healthz``.

    Raises:
        ServerError: it does not answer.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    # Our own child on this machine, by address: whom its certificate names is for callers to check.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    while True:
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=5.0, context=context) as response:
                if response.status == 200 and response.read() == b'{"alive":true}':
                    return
        except (urllib.error.URLError, OSError) as error:
            logger.debug("not yet: %s", error)
        if time.monotonic() > deadline:
            raise ServerError(f"the sidecar does not answer at {address} after {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)
