"""``python -m serve up``: the servers it was asked for, Ray, Ray Serve, the sidecar; until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.access import Access
from serve.clients import TritonValueClient
from serve.cluster import base_urls, free_port, is_direct, ray_running, sidecar_deployed
from serve.config import SidecarConfig
from serve.policy_keeper import require_openable
from serve.server_link import require_fitting_model
from serve.settings import settings_of
from triton_models.doors import StopSignals, say
from triton_models.errors import ConfigurationError, ServerError, UpstreamUnavailableError
from triton_models.files import write_json

if TYPE_CHECKING:
    from triton_models.server import EmbeddedServer

logger = logging.getLogger(__name__)

PORT_ATTEMPTS = 20

BESIDE_RANKER_NICENESS = 2
"""With 5, on two cores, the value network starved from 60 % of saturation on: half of its answers late."""


def cores_beside_ranker() -> tuple[int, ...]:
    """The last half of this process's cores, rounded down: a value network beside a ranker keeps to these.

    The others are the ranker's and the sidecar's whatever it does, and a request that is handed from thread
    to thread stays on a core. On two cores the median grows by a seventh less (benchmarks/RESULTS.md, P2).
    Empty, which is all, where there is one core.
    """
    return last_cores(len(os.sched_getaffinity(0)) // 2 or None)


def run_up(options: argparse.Namespace) -> int:
    """Run the stack in the foreground.

    Raises:
        PutsError: something asked for is impossible or did not start; what was started is ended.
    """
    data = settings_of(options)
    stop = StopSignals()
    servers: dict[str, EmbeddedServer] = {}
    with ExitStack() as stack:
        stack.enter_context(stop.installed())
        if options.log_dir:
            data["logs"] = {"folder": str(options.log_dir.resolve()), **(data.get("logs") or {})}
        data["metrics_dir"] = stack.enter_context(_metrics_folder(data.get("metrics_dir")))
        _claim_ports(data["http"], _num_ports(data))
        # Addresses are filled in below; nothing of Ray depends on them.
        early = SidecarConfig.from_dict(data)
        if not options.ray_address:  # elsewhere the secrets are the replicas' own
            require_openable(early)
            Access(early.access)
        stack.enter_context(ray_running(early, ray_address=options.ray_address))
        stack.enter_context(stop.installed())  # Ray put handlers of its own in place
        if options.repository:
            # Beside a ranker its answer has time; the ranker and the sidecar on the same cores have none.
            niceness, cores = options.value_network_niceness, last_cores(options.value_network_cores)
            if early.ranker or options.ranker_repository:
                niceness = BESIDE_RANKER_NICENESS if niceness is None else niceness
                cores = cores_beside_ranker() if options.value_network_cores is None else cores
            server = _start_server(stack, options, options.repository, "value_network", niceness or 0, cores)
            data["value_network"]["addresses"] = [f"http://{server.http_address}"]
            servers["value_network"] = server
        if options.ranker_repository:
            server = _start_server(stack, options, options.ranker_repository, "ranker")
            data["ranker"]["addresses"] = [f"http://{server.http_address}"]
            servers["ranker"] = server
        config = SidecarConfig.from_dict(data)
        asyncio.run(_check_surface(config))
        if not stop.asked:
            stack.enter_context(sidecar_deployed(config, ray_address=options.ray_address))
            direct = is_direct(config, ray_address=options.ray_address)
            _announce(config, base_urls(config, direct=direct), options.ready_file, servers)
            stop.wait()
        say("ending ...")
    return 0


@contextmanager
def _metrics_folder(given: str | None) -> Iterator[str]:
    folder = given or tempfile.mkdtemp(prefix="puts-metrics-")
    try:
        yield folder
    finally:
        if given is None:
            shutil.rmtree(folder, ignore_errors=True)


def _num_ports(data: dict[str, Any]) -> int:
    direct = data["http"].get("ingress") == "direct"
    replicas = data.get("num_replicas", 1)
    return replicas if direct and isinstance(replicas, int) else 1


def _claim_ports(http: dict[str, Any], count: int) -> None:
    """Fill in free ports, in a row, for 0; refuse taken ones now, rather than after a minute of start-up."""
    host, wanted = http.get("host", "127.0.0.1"), http.get("port", 8000)
    for _ in range(PORT_ATTEMPTS):
        port = wanted or free_port(host)
        taken = next((p for p in range(port, port + count) if not _is_free(host, p)), None)
        if taken is None:
            http["port"] = port
            return
        if wanted:
            raise ConfigurationError(f"cannot listen on {host}:{taken}; choose another --port")
    raise ConfigurationError(f"cannot find {count} free ports in a row on {host}; choose a --port")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True


def last_cores(count: int | None) -> tuple[int, ...]:
    """The last so many of this process's cores; empty for all.

    Raises:
        ConfigurationError: there are not so many.
    """
    cores = sorted(os.sched_getaffinity(0))
    if count is not None and not 1 <= count <= len(cores):
        raise ConfigurationError(f"--value-network-cores is 1 to {len(cores)} here, got {count}")
    return () if count is None else tuple(cores[-count:])


def _start_server(
    stack: ExitStack,
    options: argparse.Namespace,
    repository: Path,
    name: str,
    niceness: int = 0,
    cores: tuple[int, ...] = (),
) -> EmbeddedServer:
    from triton_models.server import EmbeddedServer
    from triton_models.supervise import Supervisor

    log_path = options.log_dir / f"{name}.log" if options.log_dir else None
    say(f"starting tritonserver for {name} from {repository} ...")
    server = stack.enter_context(
        EmbeddedServer(repository, log_path=log_path, niceness=niceness, cores=cores)
    )
    stack.enter_context(Supervisor(server))
    say(
        f"tritonserver for {name}: HTTP {server.http_address}, gRPC {server.grpc_address}, "
        f"metrics {server.metrics_address}"
    )
    return server


async def _check_surface(config: SidecarConfig) -> None:
    """Refuse to start beside a value network that was made for another surface; absence is no obstacle."""
    for address in config.value_network.addresses:
        client = TritonValueClient(config.surface, config.value_network, address)
        try:
            parameters = await client.parameters()
        except UpstreamUnavailableError as error:
            logger.warning("starting with production weights: %s", error)
        else:
            require_fitting_model(config.surface, parameters, where=address)
        finally:
            await client.close()


def example_request(config: SidecarConfig) -> dict[str, Any]:
    """A request that the sidecar answers: zeros for embeddings, no history."""
    surface = config.surface
    state: dict[str, Any] = {"user_embedding": [0.0] * surface.state.user_embedding}
    if surface.state.history is not None:
        state["history"] = {"embedding": [], "action": [], "age_s": []}
    if surface.state.context:
        state["context"] = {name: words[0] for name, words in surface.state.context.items()}
    request: dict[str, Any] = {"user_id": "u1", "state": state}
    if config.ranker is not None:
        integers = config.ranker.candidates_type == "INT64"
        request |= {"candidates": [i if integers else str(i) for i in range(10)], "k": 3}
    return request


def _announce(
    config: SidecarConfig,
    addresses: tuple[str, ...],
    ready_file: Path | None,
    servers: Mapping[str, EmbeddedServer],
) -> None:
    address = addresses[0]
    route = "rank" if config.ranker is not None else "weights"
    example = json.dumps(example_request(config))
    say(f"sidecar at {' '.join(addresses)} (Ctrl-C or SIGTERM ends it)")
    if config.policy_store is not None:
        say(f"policies: {config.policy_store.url}, last one kept in {config.policy_store.local_copy}")
    trust = "" if config.http.tls is None else f" --cacert {config.http.tls.certificate}"
    say(f"try: curl -s{trust} {address}/v1/{route} -H 'content-type: application/json' -d '{example}'")
    if ready_file is None:
        return
    # Other tools ask a server that was started here over gRPC, however the sidecar does.
    grpc = {name: server.grpc_address for name, server in servers.items()}
    metrics = {name: f"http://{server.metrics_address}/metrics" for name, server in servers.items()}
    ranker = config.ranker.addresses[0] if config.ranker else None
    ready = {
        "address": address,
        "addresses": addresses,
        "pid": os.getpid(),
        "triton": grpc.get("value_network", config.value_network.addresses[0]),
        "ranker": grpc.get("ranker", ranker),
        "metrics": {"sidecar": f"{address}/metrics", **metrics},
    }
    try:
        write_json(ready_file, ready)
    except OSError as error:
        raise ServerError(f"{ready_file}: cannot be written: {error}") from error
