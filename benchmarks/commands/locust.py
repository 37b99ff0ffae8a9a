"""``python -m benchmarks locust``: Locust against a running sidecar, headless, checked and summed up."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError
from triton_models.files import write_json

BODIES = 2000
MAX_DURATION_S = 3600
MAX_USERS = 1000
STOP_S = 60
"""Beyond its duration, Locust gets this long to start and to end."""
MAX_WARM_UP_S = 3.0

LOCUSTFILE = Path(__file__).parent.parent / "load" / "locustfile.py"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("locust", help="load on a running sidecar, with checked answers")
    parser.add_argument(
        "--host", required=True, metavar="URL", help="the sidecar, like http://127.0.0.1:8000"
    )
    parser.add_argument("--logs", type=Path, required=True, help="logs of the simulated feed")
    parser.add_argument("--users", type=int, default=2, help="callers at once (default: 2)")
    parser.add_argument("--duration", type=int, default=30, metavar="S", help="seconds (default: 30)")
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV, HTML and summary.json")
    parser.add_argument("--allow-remote", action="store_true", help="load a host that is not this machine")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run the load.

    Raises:
        BenchmarkError: it could not be run, answers were wrong, or none came.
    """
    from benchmarks.load.traffic import Mix, write_traffic

    host = check_host(options.host, allow_remote=options.allow_remote)
    _check_sizes(options)
    _check_ready(host)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    summary_path = out / "summary.json"
    summary_path.unlink(missing_ok=True)
    say(f"preparing {BODIES} requests of the simulated feed ...")
    surface = write_traffic(options.logs, out / "traffic.jsonl", count=BODIES, mix=Mix())
    plan = {
        "surface": surface.to_dict(),
        "traffic": str(out / "traffic.jsonl"),
        "summary": str(summary_path),
        "users": options.users,
        "duration_s": options.duration,
        "warm_up_s": min(MAX_WARM_UP_S, options.duration / 4),
    }
    write_json(out / "plan.json", plan)
    say(f"{options.users} users for {options.duration} s against {host} ...")
    _run_locust(options, host, out)
    return report(summary_path, out)


def check_host(url: str, *, allow_remote: bool) -> str:
    """A base URL that may be loaded.

    Raises:
        BenchmarkError: it is not a URL, or not this machine and nobody said that this is meant.
    """
    parsed = urllib.parse.urlsplit(url)
    try:
        port = parsed.port
    except ValueError as error:
        raise BenchmarkError(f"--host: {url!r}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise BenchmarkError(f"--host: expected a URL like http://127.0.0.1:8000, got {url!r}")
    if not allow_remote and not _is_loopback(parsed.hostname):
        raise BenchmarkError(
            f"--host: {parsed.hostname} is not this machine; say --allow-remote if it may be put under load"
        )
    name = f"[{parsed.hostname}]" if ":" in parsed.hostname else parsed.hostname
    return f"{parsed.scheme}://{name}" + (f":{port}" if port is not None else "")


def _is_loopback(hostname: str) -> bool:
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _check_sizes(options: argparse.Namespace) -> None:
    if not 1 <= options.duration <= MAX_DURATION_S:
        raise BenchmarkError(f"--duration: expected 1 to {MAX_DURATION_S} seconds, got {options.duration}")
    if not 1 <= options.users <= MAX_USERS:
        raise BenchmarkError(f"--users: expected 1 to {MAX_USERS}, got {options.users}")


def _check_ready(host: str) -> None:
    try:
        with urllib.request.urlopen(f"{host}/readyz", timeout=10.0):
            pass
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise BenchmarkError(f"{host}/readyz: the sidecar is not ready: {error}") from error


def _run_locust(options: argparse.Namespace, host: str, out: Path) -> None:
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless"]
    command += ["--users", str(options.users), "--spawn-rate", str(options.users)]
    command += ["--run-time", f"{options.duration + STOP_S // 2}s", "--stop-timeout", "10", "--host", host]
    command += ["--csv", str(out / "locust"), "--html", str(out / "report.html"), "--only-summary"]
    # Wrong answers are judged by the summary; Locust's own code only says that it ran.
    command += ["--exit-code-on-error", "0", "--loglevel", "WARNING"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    environment["PUTS_LOAD_PLAN"] = str(out / "plan.json")
    environment["PYTHONPATH"] = str(LOCUSTFILE.parent.parent.parent)
    try:
        done = subprocess.run(
            command, check=False, env=environment, cwd=out, timeout=options.duration + STOP_S
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"Locust did not end within {options.duration + STOP_S} s") from error
    if done.returncode:
        raise BenchmarkError(f"Locust ended with code {done.returncode}; its output is above")


def report(summary_path: Path, out: Path) -> int:
    """Say what came of it.

    Raises:
        BenchmarkError: answers were wrong, or there were none.
    """
    if not summary_path.exists():
        raise BenchmarkError(f"Locust wrote no summary; see {out}")
    summary = json.loads(summary_path.read_text(encoding="utf-8"))
    for name in ("control_on", "control_off", "weights_only"):
        if name in summary:
            row = summary[name]
            say(
                f"{name:12} {row['requests']:>8,} requests   "
                f"p50 {row['p50_ms']:.2f}   p95 {row['p95_ms']:.2f}   p99 {row['p99_ms']:.2f} ms"
            )
    for name, row in summary.get("on_minus_off_ms", {}).items():
        interval = row["interval"]
        shown = f"[{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "too few pairs for an interval"
        say(f"on - off     {name.removesuffix('_ms')} {row['difference']:+.2f} ms {shown}")
    fallbacks = ", ".join(f"{reason} {count}" for reason, count in summary["fallbacks"].items()) or "none"
    say(f"{summary['requests']:,} requests, {summary['failures']} failures, fallbacks: {fallbacks}")
    say(f"outputs: {out}/summary.json, report.html, locust_stats.csv")
    if summary["failures"]:
        first = next(iter(summary["problems"]), "unknown")
        raise BenchmarkError(
            f"{summary['failures']} of {summary['requests']} requests failed, first: {first}"
        )
    if not summary.get("control_on"):
        raise BenchmarkError("no request was answered; is the duration long enough?")
    return 0
