"""The door of this room: ``python -m triton_models export|serve``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from triton_models.config_pbtxt import BACKENDS
from triton_models.doors import StopSignals, new_parser, run_door, say
from triton_models.errors import PutsError, ServerError
from triton_models.repository import DEFAULT_REPOSITORY


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number ≥ 1, got {text!r}")
    return number


def _port(text: str) -> int:
    number = _positive(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"expected a port in 1..65535, got {text!r}")
    return number


def export(options: argparse.Namespace) -> int:
    """Export a run as the next version of ``value_network``."""
    say(f"exporting {options.run} (torch → ONNX, then parity against torch) …")
    try:
        from triton_models.export import export_run
    except ImportError as error:
        raise PutsError(f"export needs {error.name}; pip install 'prl-puts[train]'") from error
    report = export_run(
        options.run,
        options.repository,
        backend=options.backend,
        keep=options.keep,
        intra_op_threads=options.threads,
        force=options.force,
    )
    say(
        f"parity: largest difference from torch {report.parity:.2g} over {report.cases} cases; "
        "every action agrees"
    )
    say(f"run {report.run_id}, surface {report.fingerprint[:12]}, backend {report.backend}")
    say(f"wrote {report.folder} (version {report.version}, {report.num_bytes / 1024:.0f} KiB)")
    return 0


def serve(options: argparse.Namespace) -> int:
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


def build_parser() -> argparse.ArgumentParser:
    """The parser of this room."""
    parser = new_parser("python -m triton_models", "Value network → Triton model repository → tritonserver.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_export(commands)
    _add_serve(commands)
    return parser


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write a run as a new version of value_network",
        description="Export a run; refused unless the exported model equals the torch network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder written by python -m ray_train fit")
    parser.add_argument("--repository", type=Path, default=DEFAULT_REPOSITORY, help="Triton model repository")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="python", help="python: embedded; onnxruntime: GPU container"
    )
    parser.add_argument("--keep", type=_positive, default=3, metavar="N", help="newest versions kept")
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="CPU threads per instance")
    parser.add_argument("--force", action="store_true", help="replace a model of another control surface")
    parser.set_defaults(command=export)


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the embedded tritonserver on a repository",
        description="Run the real tritonserver (Python backend), supervised, in the foreground.",
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
    parser.add_argument("--http-port", type=_port, default=8000, metavar="PORT", help="HTTP port")
    parser.add_argument("--grpc-port", type=_port, default=8001, metavar="PORT", help="gRPC port")
    parser.add_argument("--metrics-port", type=_port, default=8002, metavar="PORT", help="Prometheus port")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="tritonserver's log; a temporary file if unset"
    )
    parser.set_defaults(command=serve)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the door."""
    return run_door(build_parser(), arguments)
