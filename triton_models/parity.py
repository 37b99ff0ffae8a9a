"""Is this model that network? Answers compared, and the cases that are stored beside a model for it.

``cases.npz`` in a version's folder holds inputs and what torch answered to them at the export, so that a
running server can be checked later without torch: arrays ``input.<tensor>`` and ``expected.<name>``.

Shape legend: B cases, A actions, M objectives, W controlled weights.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from triton_models.errors import ParityError, RepositoryError
from triton_models.surface import Surface

VALUE_TOLERANCE = 1e-5
"""Largest difference of a value between the exported float32 model and torch."""
Precision = Literal["float32", "float16", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
VALUE_BOUND: dict[Precision, float] = {
    "float32": VALUE_TOLERANCE,
    "float16": 2e-3,
    "bfloat16": 1e-2,
    "int8": 2e-2,
}
"""Largest difference of a value by number format: about four units in the last place near 1 for the half
precisions; for ``int8`` a tenth of what the rewards of a feed usually vary by."""
VALUE_TOLERANCE_PARAMETER = "value_tolerance"
"""Parameter of a version: the tolerance that it was exported with."""
STORED_CASES_BYTES = 2 * 1024**2
"""Bound of the stored arrays, before compression."""

Inputs = dict[str, npt.NDArray[Any]]

COMPARED = ("action_values", "action", "weights", "values")
"""Outputs that :func:`disagreements` looks at."""


@dataclass(frozen=True)
class Cases:
    """Inputs, and what torch answers to them: ``action_values`` [B, A, M] and ``scores`` [B, A]."""

    inputs: Inputs
    expected: Inputs

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def compare(surface: Surface, expected: Inputs, got: Inputs, *, tolerance: float = VALUE_TOLERANCE) -> float:
    """The largest difference of ``action_values``; every output consistent with them.

    Raises:
        ParityError: the first of :func:`disagreements`.
    """
    for problem in disagreements(surface, expected, got, tolerance=tolerance):
        raise ParityError(problem)
    return largest_difference(expected, got)


def largest_difference(expected: Inputs, got: Inputs) -> float:
    """``max |Q̂ - Q|`` over cases, actions and objectives; NaN where an answer is none."""
    return float(np.abs(got["action_values"] - expected["action_values"]).max())


def disagreements(
    surface: Surface, expected: Inputs, got: Inputs, *, tolerance: float = VALUE_TOLERANCE
) -> list[str]:
    """What differs, a line each: values by more than ``tolerance``, an action although its advantage is
    larger than the tolerance, weights or values that are not those of the action.
    """
    problems = _shape_problems(surface, expected, got)
    if problems:
        return problems
    difference_BAM = np.abs(got["action_values"] - expected["action_values"])
    worst = float(difference_BAM.max())
    if not worst <= tolerance:  # also catches NaN
        case = np.unravel_index(int(np.nan_to_num(difference_BAM, nan=np.inf).argmax()), difference_BAM.shape)
        problems.append(
            f"action values differ from torch by {worst:g}, more than {tolerance:g}, at case {case[0]}: "
            f"{got['action_values'][case]:g} against {expected['action_values'][case]:g}"
        )
    return problems + _choice_problems(surface, expected, got, tolerance)


def _shape_problems(surface: Surface, expected: Inputs, got: Inputs) -> list[str]:
    cases, actions, objectives = expected["action_values"].shape
    wanted = {
        "action_values": (cases, actions, objectives),
        "action": (cases, 1),
        "weights": (cases, len(surface.controlled)),
        "values": (cases, objectives),
    }
    return [
        f"output {name}: expected shape {shape}, got {got[name].shape if name in got else 'nothing'}"
        for name, shape in wanted.items()
        if name not in got or got[name].shape != shape
    ]


def _choice_problems(surface: Surface, expected: Inputs, got: Inputs, tolerance: float) -> list[str]:
    action_B = got["action"][:, 0]
    rows = np.arange(len(action_B))
    if ((action_B < 0) | (action_B >= surface.num_actions)).any():
        return ["the model chose an action that does not exist"]
    problems = []
    lost_B = expected["scores"].max(axis=1) - expected["scores"][rows, action_B]
    if (lost_B > 2 * tolerance).any():
        case = int(lost_B.argmax())
        problems.append(
            f"the model chooses action {action_B[case]} at case {case}, torch "
            f"{int(expected['scores'][case].argmax())}"
        )
    if not np.array_equal(got["weights"], surface.actions.astype(np.float32)[action_B]):
        problems.append("the weights are not those of the chosen action")
    if not np.array_equal(got["values"], got["action_values"][rows, action_B]):
        problems.append("the values are not those of the chosen action")
    return problems


# -------------------------------------------------------------------- stored cases


def pack_cases(cases: Cases, *, limit_bytes: int = STORED_CASES_BYTES) -> bytes:
    """The content of ``cases.npz``: as many of the last cases as fit, since the edges come last."""
    arrays = {f"input.{name}": array for name, array in cases.inputs.items()}
    arrays |= {f"expected.{name}": array for name, array in cases.expected.items()}
    row_bytes = sum(array.nbytes for array in arrays.values()) / len(cases)
    rows = min(len(cases), max(8, int(limit_bytes / row_bytes)))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array[-rows:] for name, array in arrays.items()})
    return buffer.getvalue()


def load_cases(path: Path) -> Cases:
    """Read ``cases.npz``.

    Raises:
        RepositoryError: it is missing or damaged.
    """
    try:
        # Out of memory: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise RepositoryError(f"{path}: no stored cases; export the run again") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RepositoryError(f"{path}: stored cases cannot be read: {error}; export again") from error
    parts: dict[str, Inputs] = {"input": {}, "expected": {}}
    for name, array in arrays.items():
        part, _, tensor = name.partition(".")
        parts.setdefault(part, {})[tensor] = array
    if not parts["input"] or not {"action_values", "scores"} <= set(parts["expected"]):
        raise RepositoryError(f"{path}: stored cases are incomplete; export the run again")
    return Cases(parts["input"], parts["expected"])
