"""Cases from the OpenAPI description, by schemathesis: what it allows, and what it forbids.

Every answer must be one that the description lists, of its content type and schema; none may be a 5xx that
it does not list; a body that it allows must be served.

Left out: the check that whatever the description forbids is refused. A wrong ``state`` is a fallback by
design (DESIGN.md: never an error), so that check would call the design a fault.
"""

from __future__ import annotations

import logging
import random
from typing import Any

from benchmarks.fuzz.tally import Tally
from benchmarks.fuzz.tensors import TensorBodies, described_tensors, examples_of, headers_of
from serve.tensor_body import LENGTH_HEADER, MEDIA_TYPE
from triton_models.errors import BenchmarkError

EXAMPLES_A_ROUND = 300
"""Most cases of one kind for one operation before the seed changes."""

LEFT_OUT = ["negative_data_rejection"]
# A listed 5xx (no ranking without a ranker) is an answer; an unlisted one fails status_code_conformance.
REPLACED = ["not_a_server_error"]
AS_TENSORS = " as tensors"
"""Marks the kind of cases in the binary form."""


def fuzz_described(address: str, tally: Tally, *, cases: int, headers: dict[str, str] | None = None) -> None:
    """Run at least ``cases`` cases made from ``address``/openapi.json and write down what they came to.

    Raises:
        BenchmarkError: schemathesis is not installed, or nothing answers.
    """
    try:
        import schemathesis
        from schemathesis.config import HealthCheck
        from schemathesis.engine import events, from_schema
    except ImportError as error:
        raise BenchmarkError(f"schemathesis is not installed (extra dev): {error}") from error
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    access: dict[str, Any] = {"headers": headers} if headers else {}
    done, seed = 0, tally.seed
    while done < cases:
        try:
            schema = schemathesis.openapi.from_url(f"{address}/openapi.json", **access)
        except Exception as error:  # the seam
            raise BenchmarkError(f"{address}/openapi.json cannot be read: {error}") from error
        schema.hook("map_body")(_as_tools_write_numbers)
        schema.hook("map_case")(_tensors_where_tensors_go)
        schema.config.checks.update(excluded_check_names=LEFT_OUT + REPLACED)
        # Of each operation, and about as many again of sequences of them.
        operations = max(1, schema.statistic.operations.selected)
        examples = min(EXAMPLES_A_ROUND, max(1, (cases - done) // (2 * operations)))
        schema.config.generation.update(max_examples=examples)
        # A draw that is slow or often thrown away says something of the tool, nothing of the application.
        schema.config.suppress_health_check = [HealthCheck.filter_too_much, HealthCheck.too_slow]
        schema.config.seed = seed
        if headers:
            schema.config.headers = headers
        before = done
        for event in from_schema(schema).execute():
            if isinstance(event, (events.NonFatalError, events.FatalError)):
                reason = event.value if isinstance(event, events.NonFatalError) else event.exception
                tally.find(f"schemathesis stopped: {reason!r}")
            elif hasattr(event, "recorder"):
                done += _record(event.recorder, tally)
        if done == before:
            raise BenchmarkError(f"schemathesis made no case for {address}/openapi.json")
        seed += 1


def _as_tools_write_numbers(_: Any, body: Any) -> Any:
    """2.0 is a whole number to JSON Schema and not to us: no JSON tool writes an id that way."""
    if isinstance(body, dict):
        return {
            key: _as_tools_write_numbers(_, value) if key != "state" else value for key, value in body.items()
        }
    if isinstance(body, list):
        return [_as_tools_write_numbers(_, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body


def _tensors_where_tensors_go(_: Any, case: Any) -> Any:
    """What schemathesis draws for bytes is the seed of a binary body, except the description's own example.

    Its header goes with it; beside JSON, which schemathesis would send it with as well, there is none.
    """
    headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != LENGTH_HEADER}
    if case.media_type == MEDIA_TYPE:
        described = case.operation.schema.raw_schema
        body = case.body.encode("utf-8", "surrogatepass") if isinstance(case.body, str) else bytes(case.body)
        if body not in examples_of(described, case.operation.path):
            body = TensorBodies(described_tensors(described, case.operation.path)).allowed(
                random.Random(body)
            )
        case.body = body
        headers |= headers_of(body) | random.Random(body).choice([{}, {"accept": MEDIA_TYPE}])
    case.headers = headers
    return case


def _record(recorder: Any, tally: Tally) -> int:
    for case_id in recorder.cases:
        interaction = recorder.interactions.get(case_id)
        response = getattr(interaction, "response", None)
        label = recorder.label
        if recorder.cases[case_id].value.media_type == MEDIA_TYPE:
            label += AS_TENSORS
        tally.count(label, "no answer" if response is None else response.status_code)
        if response is None:
            tally.find(f"{label}: no answer")
        elif response.status_code == 500:
            tally.find(f"{label}: 500 {response.content[:300]!r}")
    for case_id, checks in recorder.checks.items():
        for check in checks:
            path = recorder.cases[case_id].value.operation.path
            if check.failure_info is None or _is_rule_of_policies(check.name, path):
                continue
            response = getattr(recorder.interactions.get(case_id), "response", None)
            answered = "" if response is None else f"{response.status_code} {response.content[:300]!r}"
            failure = " ".join(str(check.failure_info.failure).split())[:300]
            sample = check.failure_info.code_sample[:2000]
            tally.find(f"{recorder.label}: {check.name}: {failure}; {answered}; {sample}")
    return len(recorder.cases)


def _is_rule_of_policies(check: str, path: str) -> bool:
    """A policy of the right shape may still be one that cannot be applied: 422, and not a fault."""
    return check == "positive_data_acceptance" and path.startswith("/v1/polic")
