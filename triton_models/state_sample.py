"""States that a run has seen logged, kept beside its weights: what variants of the model are judged on.

``RUN/states.npz`` holds the state tensors (:func:`triton_models.tensors.state_specs`) of some hold-out rows,
codes in the smallest integer type; nothing that names a user or says what they did afterwards.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.errors import RunError
from triton_models.surface import Surface
from triton_models.tensors import input_specs, state_specs

SAMPLE = "states.npz"
SAMPLE_ROWS = 1024
"""With the 25 λ of a sweep, 25,600 choices: an agreement of 99.9 % can be told from 99.8 %."""

Arrays = Mapping[str, npt.NDArray[Any]]


def pack_states(surface: Surface, arrays: Arrays) -> bytes:
    """The file's contents: evenly spaced rows of the state tensors; other arrays are left out."""
    kept = {}
    count = len(arrays["user_embedding"])
    spaced = np.linspace(0, count - 1, min(count, SAMPLE_ROWS)).astype(np.int64)
    for spec in state_specs(surface):
        value = arrays[spec.name][spaced]
        if spec.datatype == "INT64":
            value = value.astype(np.min_scalar_type(int(value.max(initial=0))))
        kept[spec.name] = value
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **kept)
    return buffer.getvalue()


def with_even_scalarization(surface: Surface, states: Arrays) -> dict[str, npt.NDArray[Any]]:
    """States as inputs of the served model, every objective alike."""
    count = len(states["user_embedding"])
    even = np.full((count, len(surface.objectives)), 1.0 / len(surface.objectives), dtype=np.float32)
    return {spec.name: states.get(spec.name, even) for spec in input_specs(surface)}


def load_states(surface: Surface, run: Path) -> dict[str, npt.NDArray[Any]]:
    """State tensors in the types of the served model.

    Raises:
        RunError: the run has no sample, or it is damaged.
    """
    file = run / SAMPLE
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            states = {spec.name: stored[spec.name].astype(spec.dtype) for spec in state_specs(surface)}
    except FileNotFoundError as error:
        raise RunError(f"{file}: is missing; the run was made by an older version, fit again") from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{file}: cannot be read ({error}); fit again") from error
    rows = {len(value) for value in states.values()}
    fits = all(states[spec.name].shape[1:] == spec.shape for spec in state_specs(surface))
    if len(rows) != 1 or not fits:
        raise RunError(f"{file}: does not fit the run's surface; fit again")
    return states
