"""``python -m benchmarks fuzz``: the API under bad input (R5 of the design)."""

from __future__ import annotations

import argparse
import contextlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError

SMALL = Path(__file__).parents[1] / "surfaces" / "small.yaml"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "fuzz",
        help="the API under bad input: from its OpenAPI description, and raw bytes",
        description="Half of the cases are made from /openapi.json (schemathesis), half are raw bytes. "
        "Without --url a sidecar with moody stand-ins behind it is started in this process. "
        "Exit code 2 when something was found.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=10_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a running sidecar, such as http://127.0.0.1:8000; it is asked a lot")
    parser.add_argument("--surface", type=Path, default=SMALL, metavar="FILE", help="of the sidecar")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts and findings here (JSON)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Fuzz, print the counts, fail if anything was found.

    Raises:
        BenchmarkError: something was found, or there was nothing to fuzz.
    """
    from benchmarks.fuzz.described import fuzz_described
    from benchmarks.fuzz.raw import Raw
    from benchmarks.fuzz.tally import Tally
    from benchmarks.fuzz.target import fuzzed_config, target_running
    from serve.up import example_request
    from triton_models.files import write_json
    from triton_models.surface import load_surface

    surface = load_surface(options.surface)
    tally = Tally(seed=options.seed)
    with contextlib.ExitStack() as stack:
        address = options.url or stack.enter_context(target_running(surface))
        description = _description(address)
        say(f"fuzzing {address}: {options.cases} cases from seed {options.seed} ...")
        fuzz_described(address, tally, cases=options.cases // 2)
        Raw(address, tally, description, example_request(fuzzed_config(surface, Path()))).run(
            options.cases - tally.total if options.cases > tally.total else options.cases // 2
        )
        tally.fallbacks = _fallbacks(address)
    for line in tally.lines():
        say(line)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, tally.to_dict())
        say(f"written to {options.out}")
    if tally.num_findings:
        for text in tally.findings:
            say(f"FOUND {text}")
        raise BenchmarkError(f"{tally.num_findings} findings in {tally.total} cases (seed {tally.seed})")
    say(f"{tally.total} cases, nothing found")
    return 0


def _fallbacks(address: str) -> dict[str, int]:
    """Fallbacks by reason, from the sidecar's own metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/metrics", timeout=10) as response:
            text = response.read().decode()
    except (urllib.error.URLError, OSError) as error:
        raise BenchmarkError(f"{address}: no /metrics after the run: {error}") from error
    return {
        sample.labels["reason"]: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "puts_fallbacks_total"
    }


def _description(address: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/openapi.json", timeout=10) as response:
            found: dict[str, Any] = json.loads(response.read())
            return found
    except (urllib.error.URLError, ValueError, OSError) as error:
        raise BenchmarkError(f"{address}: no /openapi.json to fuzz by: {error}") from error
