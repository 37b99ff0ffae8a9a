"""``python -m benchmarks fuzz``: bad input, of the API, of servers, in logs and files (R5 of the design)."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_models.doors import say
from triton_models.errors import BenchmarkError

if TYPE_CHECKING:
    from benchmarks.fuzz.cases import Verdict
    from benchmarks.fuzz.tally import Tally
    from triton_models.surface import Surface

TARGETS = ("api", "answers", "logs", "files")

SMALL = Path(__file__).parents[1] / "surfaces" / "small.yaml"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "fuzz",
        help="bad input: to the API, for answers of servers, in logs, in files",
        description="api: half of the cases are made from /openapi.json (schemathesis), half are raw bytes; "
        "without --url a sidecar with moody stand-ins behind it is started in this process. answers: what "
        "the value network and the ranker answer, spoilt. logs: exploration logs, spoilt, through validate. "
        "files: surfaces, policies, frontiers, runs, decisions, events and spool files, spoilt. "
        "Exit code 2 when something was found.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--target", choices=TARGETS, default="api", help="what is given bad input")
    parser.add_argument("--cases", type=int, default=10_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="N", help="answers, logs, files: this case alone")
    parser.add_argument("--url", help="a running sidecar, such as http://127.0.0.1:8000; it is asked a lot")
    parser.add_argument("--surface", type=Path, default=SMALL, metavar="FILE", help="of what is fuzzed")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts and findings here (JSON)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Fuzz, print the counts, fail if anything was found.

    Raises:
        BenchmarkError: something was found, or there was nothing to fuzz.
    """
    from benchmarks.fuzz.tally import Tally
    from triton_models.files import write_json
    from triton_models.surface import load_surface

    surface = load_surface(options.surface)
    tally = Tally(seed=options.seed)
    if options.target == "api":
        _fuzz_api(options, surface, tally)
    else:
        _fuzz_cases(options, surface, tally)
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


def _fuzz_api(options: argparse.Namespace, surface: Surface, tally: Tally) -> None:
    from benchmarks.fuzz.described import fuzz_described
    from benchmarks.fuzz.raw import Raw
    from benchmarks.fuzz.target import fuzzed_config, target_running
    from serve.up import example_request

    with contextlib.ExitStack() as stack:
        address = options.url or stack.enter_context(target_running(surface))
        description = _description(address)
        say(f"fuzzing {address}: {options.cases} cases from seed {options.seed} ...")
        fuzz_described(address, tally, cases=options.cases // 2)
        Raw(address, tally, description, example_request(fuzzed_config(surface, Path()))).run(
            options.cases - tally.total if options.cases > tally.total else options.cases // 2
        )
        tally.fallbacks = _fallbacks(address)


def _fuzz_cases(options: argparse.Namespace, surface: Surface, tally: Tally) -> None:
    say(f"fuzzing {options.target}: {options.cases} cases from seed {options.seed} ...")
    begun_s = time.monotonic()
    for number, verdict in _verdicts(options, surface):
        tally.count(verdict.kind, verdict.outcome)
        if verdict.finding is not None:
            tally.find(f"case {number}: {verdict.finding}")
    say(f"{tally.total / max(1e-9, time.monotonic() - begun_s):,.0f} cases a second")


def _verdicts(options: argparse.Namespace, surface: Surface) -> Iterator[tuple[int, Verdict]]:
    from benchmarks.fuzz.answers import answers
    from benchmarks.fuzz.cases import generator
    from benchmarks.fuzz.isolated import isolated
    from benchmarks.fuzz.loaders import LoaderCases
    from benchmarks.fuzz.log_files import LogFilesCases

    source = LogFilesCases if options.target == "logs" else LoaderCases
    if options.target == "answers":
        with answers(surface) as cases:
            for number in range(options.cases) if options.only is None else (options.only,):
                yield number, cases.case(generator(options.seed, number))
    elif options.only is not None:
        yield options.only, source(surface).case(generator(options.seed, options.only))
    else:
        yield from isolated(source, surface, seed=options.seed, cases=options.cases)


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
