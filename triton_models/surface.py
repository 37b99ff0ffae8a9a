"""The control surface: the contract of every room, one YAML file.

A surface names the objectives, the controlled utility weights and their grid, the fixed weights, and
the request state. Everything else is derived from it: the action set, its normalisation, the tensors
of the served model (:mod:`triton_models.tensors`), the columns of the exploration log.

Symbols (arXiv 2605.16344):

* utility ``u(s,x;w) = Σ_i w_i h_i(s,x)`` (Eq. 1);
* action set ``A = G_1 × … × G_W`` with ``G_j`` the ``K_j`` linearly spaced values of controlled weight
  ``j`` (Eq. 2), numbered row-major in file order: the last weight varies fastest;
* normalised action ``ã_j = (a_j - min_j) / (max_j - min_j)`` (Eq. 6).
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from triton_models.errors import ScalarizationError, SurfaceError, SurfaceMismatchError
from triton_models.yaml_files import load_yaml as load_yaml

MAX_ACTIONS = 4096
"""Largest grid accepted: the action half of the exported graph holds one row per action."""

MAX_DIMENSION = 4096
"""Largest embedding dimension or history length accepted."""

LARGEST_WEIGHT = 1e30
"""Largest magnitude of a grid value; weights are served as float32."""

GRID_TOLERANCE = 1e-4
"""A weight lies on the grid if it is within this share of one grid step (logs may hold float32)."""

Name = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
"""Names become Parquet columns and metric labels, hence the narrow alphabet."""

Word = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=256)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Dimension = Annotated[int, Field(strict=True, ge=1, le=MAX_DIMENSION)]

FloatArray = npt.NDArray[np.float64]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def describe_validation_error(error: ValidationError) -> str:
    """The first problems of a pydantic error as one line: ``field: what is wrong (got value)``."""
    parts = []
    for item in error.errors()[:3]:
        where = ".".join(str(part) for part in item["loc"]) or "file"
        message = item["msg"].removeprefix("Value error, ")
        given = item.get("input")
        shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool)) else ""
        parts.append(f"{where}: {message}{shown}")
    more = error.error_count() - 3
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _refuse_duplicates(names: tuple[str, ...], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} must be unique, but {', '.join(twice)} appears more than once")


class ControlledWeight(_Frozen):
    """One weight that the value network chooses, with its grid (Eq. 2)."""

    head: Name
    """Ranker head that the weight multiplies."""
    minimum: FiniteFloat
    """Smallest grid value."""
    maximum: FiniteFloat
    """Largest grid value."""
    points: Annotated[int, Field(strict=True, ge=2)]
    """Number of linearly spaced grid values, both ends included."""
    production: FiniteFloat
    """Weight in force when the control is off; need not be a grid value."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.minimum < self.maximum:
            raise ValueError(
                f"minimum must be below maximum for head {self.head}, got {self.minimum} and "
                f"{self.maximum}; a weight that does not vary belongs under 'fixed'"
            )
        if not self.minimum <= self.production <= self.maximum:
            raise ValueError(
                f"production weight {self.production} of head {self.head} lies outside "
                f"[{self.minimum}, {self.maximum}]"
            )
        largest = max(abs(self.minimum), abs(self.maximum))
        finest = max(largest * 2.0**-20, 1 / LARGEST_WEIGHT)
        # More points than that are refused as a grid; Python cannot even divide by as many as a file may say.
        if self.points <= MAX_ACTIONS and (largest > LARGEST_WEIGHT or self.step < finest):
            raise ValueError(
                f"the grid of head {self.head} cannot be told apart in float32, in which weights are served: "
                f"a step of {self.step:g} at values up to {largest:g}"
            )
        return self

    @property
    def step(self) -> float:
        """Distance between neighbouring grid values."""
        return (self.maximum - self.minimum) / (self.points - 1)


class HistorySpec(_Frozen):
    """The user's recent actions, as the request carries them."""

    length: Dimension
    """Number of newest actions used, N."""
    embedding: Dimension
    """Item embedding dimension, E."""
    actions: Annotated[tuple[Word, ...], Field(min_length=1)]
    """Vocabulary of action types; code 0 is padding, codes 1.. follow this order."""

    @field_validator("actions")
    @classmethod
    def _unique(cls, actions: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_duplicates(actions, "history actions")
        return actions


class StateSpec(_Frozen):
    """What a request knows about itself before any candidate is scored."""

    user_embedding: Dimension
    """User embedding dimension, D."""
    history: HistorySpec | None = None
    context: dict[Name, tuple[Word, ...]] = Field(default_factory=dict)
    """Categorical fields and their vocabularies; code 0 is unknown, codes 1.. follow the order."""

    @field_validator("context")
    @classmethod
    def _vocabularies(cls, context: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, words in context.items():
            if not words:
                raise ValueError(
                    f"context field {name} has an empty vocabulary; remove it or name its values"
                )
            _refuse_duplicates(words, f"values of context field {name}")
        return context


class Surface(_Frozen):
    """A validated control surface. Immutable; equal surfaces have equal fingerprints."""

    name: Name
    objectives: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Objectives in the order of the scalarization λ."""
    controlled: Annotated[tuple[ControlledWeight, ...], Field(min_length=1)]
    fixed: dict[Name, FiniteFloat] = Field(default_factory=dict)
    """Remaining heads at their production weights."""
    state: StateSpec
    cohorts: tuple[Word, ...] = ()
    metrics: tuple[Name, ...] = ()
    """Guardrail metrics: reported with every lift, never optimised."""

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        _refuse_duplicates(self.objectives, "objectives")
        _refuse_duplicates(self.heads, "heads (controlled and fixed together)")
        _refuse_duplicates(self.cohorts, "cohorts")
        _refuse_duplicates(self.metrics, "metrics")
        size = math.prod(weight.points for weight in self.controlled)
        if size > MAX_ACTIONS:
            grid = " x ".join(str(weight.points) for weight in self.controlled)
            raise ValueError(
                f"the grid has {grid} = {size} actions, more than the limit of {MAX_ACTIONS}; "
                "use fewer points or fewer controlled weights"
            )
        return self

    # ---------------------------------------------------------------- derived: heads and weights

    @property
    def heads(self) -> tuple[str, ...]:
        """All ranker heads: the controlled ones first, then the fixed ones, in file order."""
        return (*(weight.head for weight in self.controlled), *self.fixed)

    @property
    def controlled_heads(self) -> tuple[str, ...]:
        """Heads whose weights are chosen, in file order."""
        return tuple(weight.head for weight in self.controlled)

    @cached_property
    def production(self) -> FloatArray:
        """Production values of the controlled weights, shape [W]."""
        return np.array([weight.production for weight in self.controlled], dtype=np.float64)

    @cached_property
    def fixed_weights(self) -> FloatArray:
        """Weights of the fixed heads, in the order of ``heads[W:]``."""
        return np.array(list(self.fixed.values()), dtype=np.float64)

    # ---------------------------------------------------------------- derived: the action set

    @property
    def num_actions(self) -> int:
        """|A|, the size of the grid."""
        return math.prod(weight.points for weight in self.controlled)

    @cached_property
    def actions(self) -> FloatArray:
        """Weights of every action, shape [A, W], row-major in file order (Eq. 2)."""
        axes = [np.linspace(w.minimum, w.maximum, w.points) for w in self.controlled]
        mesh = np.meshgrid(*axes, indexing="ij")
        return np.stack([axis.ravel() for axis in mesh], axis=1)

    @cached_property
    def normalized_actions(self) -> FloatArray:
        """Min-max normalised weights of every action in [0, 1], shape [A, W] (Eq. 6)."""
        return self.normalize(self.actions)

    def normalize(self, weights: npt.ArrayLike) -> FloatArray:
        """Min-max normalise weights [..., W] by the surface's ranges (Eq. 6)."""
        minimum = np.array([weight.minimum for weight in self.controlled])
        maximum = np.array([weight.maximum for weight in self.controlled])
        return np.asarray((np.asarray(weights, dtype=np.float64) - minimum) / (maximum - minimum))

    def action_indices(self, weights: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Action numbers of weights [n, W]; -1 where a row is not on the grid or not finite."""
        w_NW = np.asarray(weights, dtype=np.float64)
        if w_NW.ndim != 2 or w_NW.shape[1] != len(self.controlled):
            raise ValueError(f"weights must have shape [n, {len(self.controlled)}], got {list(w_NW.shape)}")
        index = np.zeros(len(w_NW), dtype=np.int64)
        good = np.ones(len(w_NW), dtype=bool)
        for j, weight in enumerate(self.controlled):
            with np.errstate(invalid="ignore", over="ignore"):
                steps = (w_NW[:, j] - weight.minimum) / weight.step
            good &= np.isfinite(steps)
            steps = np.where(np.isfinite(steps), steps, -1.0)
            nearest = np.rint(np.clip(steps, -1, weight.points))
            # Weights come from float32 tensors and logs: allow one rounding of the largest grid value.
            rounding = max(abs(weight.minimum), abs(weight.maximum)) * 2.0**-23 / weight.step
            good &= (
                (np.abs(steps - nearest) <= GRID_TOLERANCE + rounding)
                & (nearest >= 0)
                & (nearest < weight.points)
            )
            index = index * weight.points + np.clip(nearest, 0, weight.points - 1).astype(np.int64)
        return np.where(good, index, -1)

    def mixture(self, weights: npt.ArrayLike) -> FloatArray:
        """Multilinear interpolation weights of a point over the grid, shape [A], summing to one.

        The mixture is the randomised policy over the up to 2^W corners of the surrounding grid cell
        whose mean weight vector is ``weights`` [W] (clipped to the grid's ranges); its value equals that
        of the point up to the curvature of the reward within one cell.
        """
        mixture = np.ones(1)
        for weight, value in zip(self.controlled, np.asarray(weights, dtype=np.float64), strict=True):
            axis = np.zeros(weight.points)
            position = (np.clip(value, weight.minimum, weight.maximum) - weight.minimum) / weight.step
            lower = min(int(position), weight.points - 2)
            axis[lower] = 1.0 - (position - lower)
            axis[lower + 1] = position - lower
            mixture = np.outer(mixture, axis).ravel()
        return mixture

    def production_mixture(self) -> FloatArray:
        """:meth:`mixture` at the production weights.

        Production is usually not a grid point, so no logged action equals it: this is how it is valued.
        """
        return self.mixture(self.production)

    @property
    def nearest_production_action(self) -> int:
        """The grid action nearest to production in normalised weights."""
        distance = np.linalg.norm(self.normalized_actions - self.normalize(self.production), axis=1)
        return int(np.argmin(distance))

    # ---------------------------------------------------------------- identity

    def canonical(self) -> dict[str, Any]:
        """The surface as plain JSON data; order-bearing mappings become lists of pairs."""
        data = self.model_dump(mode="json")
        data["fixed"] = [[head, weight] for head, weight in self.fixed.items()]
        data["state"]["context"] = [[name, list(words)] for name, words in self.state.context.items()]
        return data

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical form."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads back; what runs, models and frontiers store."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The surface as YAML text that :func:`load_surface` reads back."""
        data = self.to_dict()
        # PyYAML writes line separators such as U+0085 as they are and then folds them: escape those.
        readable = json.dumps(data, ensure_ascii=False).isprintable()
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=readable)

    @classmethod
    def from_dict(cls, data: object, *, source: str = "surface") -> Surface:
        """Build a surface from plain data.

        Raises:
            SurfaceError: naming ``source``, the field and what is wrong with it.
        """
        if not isinstance(data, dict):
            raise SurfaceError(f"{source}: expected a mapping with name, objectives, controlled, state, …")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SurfaceError(f"{source}: {describe_validation_error(error)}") from error

    def require_same(self, other: Surface, *, this: str, that: str) -> None:
        """Refuse to go on with parts made for different surfaces.

        Raises:
            SurfaceMismatchError: naming the fields that differ.
        """
        if self.fingerprint != other.fingerprint:
            fields = ", ".join(_differences("", self.canonical(), other.canonical())[:5])
            raise SurfaceMismatchError(
                f"{this} and {that} were made for different control surfaces; they differ in {fields}; "
                "use parts of one surface, or fit and export again"
            )

    # ---------------------------------------------------------------- scalarization

    def scalarization(self, values: npt.ArrayLike, *, source: str = "scalarization") -> FloatArray:
        """Validate λ (≥ 0, finite, sum > 0, one entry per objective) and put it on the simplex, [M].

        Raises:
            ScalarizationError: naming ``source`` and the problem.
        """
        try:
            scalarization = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ScalarizationError(f"{source}: expected numbers, got {values!r}"[:300]) from error
        if scalarization.shape != (len(self.objectives),):
            raise ScalarizationError(
                f"{source}: expected {len(self.objectives)} numbers, one per objective "
                f"({', '.join(self.objectives)}), got shape {list(scalarization.shape)}"
            )
        with np.errstate(over="ignore"):
            total = scalarization.sum()
        if not np.isfinite(total) or (scalarization < 0).any() or total <= 0:
            raise ScalarizationError(
                f"{source}: entries must be finite, ≥ 0 and not all zero, got {scalarization.tolist()}"
            )
        return np.asarray(scalarization / total)


def _differences(path: str, left: object, right: object) -> list[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [*left, *(key for key in right if key not in left)]
        return [
            text
            for key in keys
            for text in _differences(f"{path}.{key}" if path else str(key), left.get(key), right.get(key))
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            text
            for i, (one, two) in enumerate(zip(left, right, strict=True))
            for text in _differences(f"{path}[{i}]", one, two)
        ]
    return [] if left == right else [f"{path} ({left!r} against {right!r})"]


def load_surface(path: str | Path) -> Surface:
    """Read and validate a control surface.

    Raises:
        SurfaceError: one line that names the file, the field and what is wrong.
    """
    return Surface.from_dict(load_yaml(path), source=str(path))
