"""``python -m triton_models serve``: the embedded tritonserver on a repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from triton_models.commands.options import Subparsers, port
from triton_models.doors import StopSignals, say
from triton_models.errors import ServerError
from triton_models.published import DEFAULT_REPOSITORY


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "serve",
        help="run the embedded tritonserver on a repository",
        description="Run the real tritonserver (Python backend, explicit model control), supervised, in the "
        "foreground. A server that is replaced comes back with the version that the repository selects.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "repository",
        metavar="REPO",
        type=Path,
        nargs="?",
        default=DEFAULT_REPOSITORY,
        help="Triton model repository",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--http-port", type=port, default=8000, metavar="PORT", help="HTTP port")
    parser.add_argument("--grpc-port", type=port, default=8001, metavar="PORT", help="gRPC port")
    parser.add_argument("--metrics-port", type=port, default=8002, metavar="PORT", help="Prometheus port")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="tritonserver's log; a temporary file if unset"
    )
    parser.add_argument(
        "--otlp-url",
        metavar="URL",
        help="OpenTelemetry collector (OTLP over HTTP) for spans of requests with a trace context, such as "
        "http://127.0.0.1:4318/v1/traces; no tracing if unset",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run the embedded tritonserver under supervision until SIGTERM or SIGINT."""
    from triton_models.server import EmbeddedServer
    from triton_models.supervise import Supervisor

    stop = StopSignals()
    server = EmbeddedServer(
        options.repository,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        log_path=options.log,
        otlp_url=options.otlp_url,
    )
    with stop.installed():
        try:
            say(f"starting tritonserver with {', '.join(server.models)} from {server.repository} …")
            with server, Supervisor(server):
                say(f"gRPC     {server.grpc_address}")
                say(f"HTTP     http://{server.http_address}")
                say(f"metrics  http://{server.metrics_address}/metrics")
                say(f"log      {server.log_path}")
                say(f"ready: every model answered a real inference (pid {server.pid}); Ctrl-C ends it")
                stop.wait()
                say("stopping …")
        except ServerError:
            if not stop.asked:
                raise
    return 0
