"""How a stand-in behaves: how long it takes, and what it answers. Pure; the server is in ``server.py``."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from triton_models.errors import BenchmarkError
from triton_models.surface import Surface

Mode = Literal["honest", "error", "nan", "off_grid", "wrong_shape", "empty", "silent"]
"""honest: right answers. error: gRPC INTERNAL. nan, off_grid, wrong_shape, empty: answers that are none.
silent: never answers."""

MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What a stand-in does until it is told otherwise."""

    mode: Mode = "honest"
    p50_ms: float = 0.0
    """Median of its own time, waited by a timer, so that it costs next to no processor time."""
    p99_ms: float = 0.0
    """99th percentile; the logarithm of the time is normal."""
    extra_ms: float = 0.0
    """Added to every answer: a slow server."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise BenchmarkError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if not (0 <= self.p50_ms <= self.p99_ms and self.extra_ms >= 0) or self.p50_ms == 0 < self.p99_ms:
            raise BenchmarkError(
                f"times must be 0 ≤ p50_ms ≤ p99_ms and extra_ms ≥ 0, got {self.p50_ms:g}, "
                f"{self.p99_ms:g}, {self.extra_ms:g}"
            )

    @classmethod
    def parse(cls, data: object) -> Behaviour:
        """From plain data.

        Raises:
            BenchmarkError: unknown or impossible values.
        """
        try:
            return cls(**data)  # type: ignore[arg-type]
        except TypeError as error:
            raise BenchmarkError(f"a behaviour has mode, p50_ms, p99_ms, extra_ms: {error}") from error


_Z99 = NormalDist().inv_cdf(0.99)


def replayed_ms(behaviour: Behaviour, key: bytes) -> float:
    """``p50 · exp(σ z)``, ``σ = ln(p99 / p50) / z_99``: log-normal time, always the same for the same key.

    A request that is sent twice, with the control on and off, so meets the same ranker time twice, and the
    difference of the two does not carry the ranker's spread.
    """
    if behaviour.p50_ms == 0:
        return behaviour.extra_ms
    sigma = math.log(behaviour.p99_ms / behaviour.p50_ms) / _Z99
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    z = NormalDist().inv_cdf((number + 0.5) / 2.0**64)
    return behaviour.p50_ms * math.exp(sigma * z) + behaviour.extra_ms


def injected_ms(tracestate: str) -> float:
    """Milliseconds that a request asks the stand-in to add: ``tracestate: puts-delay=2``.

    It is how a benchmark checks itself: a delay that is really put into the path must be found again.
    """
    for member in tracestate.split(","):
        name, _, value = member.strip().partition("=")
        if name == "puts-delay":
            try:
                return min(max(float(value), 0.0), 1000.0)
            except ValueError:
                return 0.0
    return 0.0


Arrays = dict[str, npt.NDArray[Any]]


def ranker_answer(mode: Mode, *, count: int, heads: int) -> Arrays:
    """``scores`` FP32 [1, count, heads]: fixed pseudo-random probabilities, or a lie."""
    scores = np.random.default_rng(5).random((1, count, heads), dtype=np.float32)
    if mode == "nan":
        scores[0, :, 0] = np.nan
    if mode in ("wrong_shape", "off_grid"):
        scores = scores[:, :-1]
    return {} if mode == "empty" else {"scores": scores}


def value_answer(mode: Mode, surface: Surface, key: bytes, *, rows: int = 1) -> Arrays:
    """``weights``, ``action`` and ``values`` of choices that depend on the states, or lies.

    Args:
        mode: honest, or which lie.
        surface: whose grid is chosen from.
        key: bytes of the states, those of one after the other.
        rows: how many states.
    """
    if mode == "empty":
        return {}
    size = len(key) // rows
    digests = [hashlib.blake2b(key[i * size : (i + 1) * size], digest_size=4).digest() for i in range(rows)]
    action = np.array([int.from_bytes(digest, "big") % surface.num_actions for digest in digests])
    weights = surface.actions[action].astype(np.float32)
    values = np.full((rows, len(surface.objectives)), 0.5, dtype=np.float32)
    if mode == "nan":
        weights, values = np.full_like(weights, np.nan), np.full_like(values, np.nan)
    elif mode == "off_grid":
        weights = weights * np.float32(1.05)
    elif mode == "wrong_shape":
        weights = np.concatenate([weights, weights], axis=1)
    return {"weights": weights, "action": action[:, np.newaxis].astype(np.int64), "values": values}
