"""Is the model in a running Triton the one that was evaluated?

What it should be comes from a repository (the version that it selects, with the cases that export stored)
or from a run (recomputed by torch). Compared are provenance, tensors, batch size, and the answers to the
stored cases; measured, without judging, are latency and batching.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from triton_models.checks import answers, surface_of, value_tolerance
from triton_models.config_pbtxt import MODEL_SHA256, config_parameters
from triton_models.errors import UpstreamError, UpstreamUnavailableError
from triton_models.measure import Latency, Load, batch_sizes, measure_latency, measure_load
from triton_models.parity import VALUE_BOUND, Cases, disagreements, largest_difference, load_cases
from triton_models.published import CASES_FILE, require_model, version_config
from triton_models.remote import RemoteServer, ServedModel
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK, TensorSpec, input_specs, output_specs

IDENTITY = ("surface_fingerprint", "run_id", MODEL_SHA256)
"""Parameters that say which model it is; compared where both sides have them."""
PROVENANCE = ("code_version", "data_window", "metrics")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The model that was evaluated, and should be served."""

    source: str
    """Where this was read."""
    version: int | None
    """Version that should answer; None where the source does not say."""
    surface: Surface
    parameters: Mapping[str, str]
    cases: Cases
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was found."""

    url: str
    model: str
    source: str
    versions: tuple[int, ...]
    """Versions that the server serves."""
    run_id: str | None
    surface_fingerprint: str | None
    cases: int
    largest_difference: float | None
    tolerance: float
    differences: tuple[str, ...]
    """One line each; none: it is the evaluated model."""
    latency: tuple[Latency, ...] = field(default=())
    load: Load | None = None
    failures: tuple[str, ...] = field(default=())
    """Requests of the measurement that failed, one line each; no part of the verdict."""

    @property
    def is_evaluated_model(self) -> bool:
        """The verdict."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"is_evaluated_model": self.is_evaluated_model, **asdict(self)}


def evaluated_from_repository(
    repository: str | Path, *, model: str = VALUE_NETWORK, version: int | None = None
) -> Evaluated:
    """What a repository selects, or another of its versions.

    Raises:
        RepositoryError: it cannot be read, or carries no cases.
    """
    published = require_model(repository, model)
    chosen = published.served if version is None else version
    folder = Path(repository) / model / str(chosen)
    parameters = config_parameters(version_config(repository, model, chosen))
    return Evaluated(
        source=str(folder),
        version=chosen,
        surface=surface_of(parameters, source=str(folder)),
        parameters=parameters,
        cases=load_cases(folder / CASES_FILE),
        tolerance=value_tolerance(parameters),
    )


def evaluated_from_run(run_path: str | Path) -> Evaluated:
    """What a run says, its answers recomputed by torch.

    Raises:
        RunError: the run is missing, unfinished or damaged.
    """
    from triton_models.export import reference_cases, run_parameters
    from triton_models.runs import load_run

    run = load_run(run_path)
    parameters = run_parameters(run)
    return Evaluated(
        source=str(run.path),
        version=None,
        surface=run.surface,
        parameters=parameters,
        cases=reference_cases(run.surface, run.load_network()),
        tolerance=value_tolerance(parameters),
    )


def verify(
    server: RemoteServer,
    evaluated: Evaluated,
    *,
    model: str = VALUE_NETWORK,
    requests: int = 100,
    concurrency: int = 32,
    tell: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Compare, and measure where ``requests`` is not 0.

    Args:
        requests: Requests per batch size; 0 measures nothing.
        concurrency: Requests under way at a time for the effective batch size.

    Raises:
        UpstreamUnavailableError: nobody answers.
    """
    server.require_live()
    served = server.served(model)
    if served is None:
        return _report(server, model, evaluated, None, [f"the server serves no model {model}"], None)
    differences = identity_differences(evaluated, served) + tensor_differences(evaluated.surface, served)
    tell(f"comparing the answers to {len(evaluated.cases)} cases with torch's …")
    if evaluated.version is None:
        # A run does not know in which number format it is served; the version says so.
        told = min(value_tolerance(served.parameters), max(VALUE_BOUND.values()))
        evaluated = replace(evaluated, tolerance=told)
    problems, largest = _answer_differences(server, model, evaluated, served.config.max_batch_size)
    latency, load = [], None
    if requests and not problems:
        for size in batch_sizes(served.config.max_batch_size):
            tell(f"latency: {requests} requests of {size} …")
            latency.append(
                measure_latency(server, model, evaluated.cases.inputs, batch_size=size, requests=requests)
            )
        count = max(requests, 20 * concurrency)
        tell(f"load: {count} requests, {concurrency} at a time …")
        load = measure_load(server, model, evaluated.cases.inputs, concurrency=concurrency, requests=count)
    return _report(server, model, evaluated, served, differences + problems, largest, tuple(latency), load)


def _report(
    server: RemoteServer,
    model: str,
    evaluated: Evaluated,
    served: ServedModel | None,
    differences: list[str],
    largest: float | None,
    latency: tuple[Latency, ...] = (),
    load: Load | None = None,
) -> VerifyReport:
    return VerifyReport(
        url=server.url,
        model=model,
        source=evaluated.source,
        versions=served.versions if served else (),
        run_id=served.parameters.get("run_id") if served else None,
        surface_fingerprint=served.parameters.get("surface_fingerprint") if served else None,
        cases=len(evaluated.cases),
        largest_difference=largest,
        tolerance=evaluated.tolerance,
        differences=tuple(differences),
        latency=latency,
        load=load,
        failures=tuple(_failures(list(latency), load)),
    )


def identity_differences(evaluated: Evaluated, served: ServedModel) -> list[str]:
    """Version, fingerprint, run id, file and provenance that are not the evaluated model's."""
    lines = []
    if evaluated.version is not None and served.versions != (evaluated.version,):
        there = ", ".join(map(str, served.versions))
        lines.append(f"version: expected {evaluated.version}, the server serves {there}")
    for name in (*IDENTITY, *PROVENANCE):
        expected, got = evaluated.parameters.get(name), served.parameters.get(name)
        if expected is not None and expected != got:
            lines.append(f"{name}: expected {_short(expected)}, the server says {_short(got)}")
    return lines


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= 80 else f"{text[:77]}…"


def tensor_differences(surface: Surface, served: ServedModel) -> list[str]:
    """Inputs and outputs that are not those of the control surface."""
    lines = []
    pairs = (
        ("input", input_specs(surface), served.inputs),
        ("output", output_specs(surface), served.outputs),
    )
    for kind, wanted, there in pairs:
        expected, got = ({spec.name: spec for spec in specs} for specs in (wanted, there))
        for name in sorted(expected.keys() | got.keys()):
            if expected.get(name) != got.get(name):
                want, have = _spec(expected.get(name)), _spec(got.get(name))
                lines.append(f"{kind} {name}: expected {want}, the server has {have}")
    if served.config.max_batch_size < 1:
        lines.append("max_batch_size: expected at least 1, the server batches nothing")
    return lines


def _spec(spec: TensorSpec | None) -> str:
    return f"{spec.datatype} {list(spec.shape)}" if spec is not None else "none"


def _answer_differences(
    server: RemoteServer, model: str, evaluated: Evaluated, max_batch_size: int
) -> tuple[list[str], float | None]:
    try:
        got = answers(server, model, evaluated.cases.inputs, max_batch_size=max_batch_size)
    except UpstreamUnavailableError:
        raise
    except UpstreamError as error:
        return [f"answers: {error}"], None
    problems = disagreements(evaluated.surface, evaluated.cases.expected, got, tolerance=evaluated.tolerance)
    if got["action_values"].shape != evaluated.cases.expected["action_values"].shape:
        return problems, None
    largest = largest_difference(evaluated.cases.expected, got)
    return problems, largest if math.isfinite(largest) else None


def _failures(latency: list[Latency], load: Load | None) -> list[str]:
    measured = [(f"batch size {item.batch_size}", item) for item in latency]
    lines = [
        f"{what}: {item.failures} of {item.requests} requests failed"
        for what, item in measured
        if item.failures
    ]
    if load is not None and load.failures:
        lines.append(f"load: {load.failures} of {load.requests} requests failed")
    return lines
