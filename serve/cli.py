"""Doors of this room: ``python -m serve up``, ``policy`` and ``dashboard``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from serve.policy_cli import add_policy_parser
from serve.policy_settings import add_policy_options
from triton_models.doors import new_parser, run_door, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run."""
    parser = new_parser("python -m serve", "The sidecar: utility weights per request, beside the ranker.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_up(subparsers)
    add_policy_parser(subparsers)
    _add_dashboard(subparsers)
    return run_door(parser, arguments)


def _add_up(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    up = subparsers.add_parser("up", help="run the sidecar in the foreground, with the servers it needs")
    value = up.add_mutually_exclusive_group()
    value.add_argument(
        "--triton",
        metavar="ADDRESS",
        help="of the value network's Triton: HOST:PORT is gRPC, http://HOST:PORT is HTTP",
    )
    value.add_argument("--repository", type=Path, help="model repository: start a tritonserver for it")
    up.add_argument(
        "--value-network-niceness",
        type=int,
        metavar="N",
        help="0 to 19: how far the tritonserver started for --repository steps back for other processes of "
        "the machine (default: 2 beside a ranker, else 0)",
    )
    up.add_argument(
        "--value-network-cores",
        type=int,
        metavar="N",
        help="keep that tritonserver to the last N cores (default: half of them beside a ranker, else all)",
    )
    ranker = up.add_mutually_exclusive_group()
    ranker.add_argument(
        "--ranker",
        metavar="ADDRESS",
        help="of the ranker (KServe v2): HOST:PORT is gRPC, http://HOST:PORT is HTTP",
    )
    ranker.add_argument("--ranker-repository", type=Path, help="start another tritonserver for the ranker")
    surface = up.add_mutually_exclusive_group()
    surface.add_argument("--surface", type=Path, help="control surface (YAML); default: the repository's")
    surface.add_argument("--frontier", type=Path, help="a frontier: surface, operating point")
    point = up.add_mutually_exclusive_group()
    point.add_argument("--operating-point", metavar="LABEL", help="candidate of the frontier (default: knee)")
    point.add_argument("--scalarization", metavar="λ,λ", help="one number per objective (default: equal)")
    up.add_argument("--no-control", action="store_true", help="production weights for everybody")
    up.add_argument("--budget-ms", type=float, help="wait for the value network (default: 10)")
    up.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    up.add_argument("--port", type=int, help="port to listen on, 0 is a free one (default: 8000)")
    up.add_argument("--replicas", type=int, help="replicas of the sidecar (default: 1)")
    up.add_argument("--decision-log", metavar="DIR", help="log decisions as Parquet into this folder")
    up.add_argument("--config", type=Path, help="YAML with any setting of serve.config.SidecarConfig")
    up.add_argument("--ray-address", help="join this Ray cluster instead of starting one")
    up.add_argument("--ready-file", type=Path, help="write {address, pid, triton, ranker} here when ready")
    up.add_argument("--log-dir", type=Path, help="folder for the logs of the replicas and the tritonservers")
    add_policy_options(up)
    up.set_defaults(command=_up)


def _up(options: argparse.Namespace) -> int:
    from serve.up import run_up

    return run_up(options)


def _add_dashboard(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dashboard = subparsers.add_parser("dashboard", help="write the Grafana dashboard (JSON)")
    dashboard.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    dashboard.set_defaults(command=_dashboard)


def _dashboard(options: argparse.Namespace) -> int:
    from serve.dashboard import dashboard_text

    if options.out is None:
        say(dashboard_text().rstrip("\n"))
    else:
        options.out.write_text(dashboard_text(), encoding="utf-8")
        say(f"written to {options.out}")
    return 0
