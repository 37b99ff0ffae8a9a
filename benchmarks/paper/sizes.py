"""What more traffic does to offline against online: correlations of runs of several sizes in one table.

Three correlations over the points of the sweep say where the noise is: offline and A/B is what one can see,
offline and truth has the logs' noise alone, A/B and truth the tests' alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.paper.tables import SET_TITLES, Lines, markdown
from triton_models.errors import BenchmarkError
from triton_models.surface import describe_validation_error

SETS = ("sweep", "near")
"""Three points are too few to compare sizes by."""
PAIRS = {"online": "offline and A/B", "truth": "offline and truth", "tests": "A/B and truth"}


class Size(BaseModel):
    """How much traffic a run had."""

    model_config = ConfigDict(frozen=True)

    requests: int
    test_requests: int
    users: int
    learner: str
    seeds: tuple[int, ...]


class Correlation(BaseModel):
    """r over worlds, as ``paper.json`` has it."""

    model_config = ConfigDict(frozen=True)

    mean: float | None
    interval: tuple[float, float] | None
    worlds: tuple[float | None, ...]


class RunOfSize(BaseModel):
    """The part of a run's ``paper.json`` that the table is made of."""

    model_config = ConfigDict(frozen=True)

    settings: Size
    correlation: Annotated[dict[str, Correlation], Field(min_length=1)]


def read_run(folder: Path) -> RunOfSize:
    """The run of another size that lies in ``folder``.

    Raises:
        BenchmarkError: there is no readable ``paper.json``.
    """
    file = folder / "paper.json"
    try:
        return RunOfSize.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise BenchmarkError(
            f"{file} is not of this version of `benchmarks paper`: {describe_validation_error(error)}"
        ) from error
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{file}: no run to show beside this one ({error})") from error


def by_size(runs: Sequence[RunOfSize], objectives: Sequence[str]) -> Lines:
    """The table, the run with the fewest logged requests first."""
    head = ["logged requests (users)", "A/B requests", "points", "objective"]
    head += [f"r, {pair}" for pair in PAIRS.values()]
    rows = []
    for run in sorted(runs, key=lambda run: run.settings.requests):
        size = run.settings
        for name in SETS:
            for objective in objectives:
                row = [f"{size.requests:,} ({size.users:,})", f"{size.test_requests:,}", SET_TITLES[name]]
                found = [run.correlation.get(f"{name} / {side} / {objective}") for side in PAIRS]
                rows.append([*row, objective, *(_shown(one) for one in found)])
    return markdown(head, rows)


def _shown(one: Correlation | None) -> str:
    if one is None or one.mean is None:
        return "–"
    shown = f"{one.mean:.4f}"
    if one.interval is not None:
        shown += f" [{one.interval[0]:.4f},\u00a0{one.interval[1]:.4f}]"
    return shown.replace("-", "−")
