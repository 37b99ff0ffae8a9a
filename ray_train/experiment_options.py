"""The texts of ``experiment``'s options → typed settings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable

from pydantic import ValidationError

from ray_train.experiment import Limit, Settings
from triton_models.errors import ConfigurationError
from triton_models.surface import describe_validation_error

_SHARES = re.compile(r"(?:(\d+):)?([^:]+)")
_LIMIT = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*(>=|<=)\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*(%?)\s*")


def settings(options: argparse.Namespace) -> Settings:
    """What the analysis is told.

    Raises:
        ConfigurationError: an option is not of its form, or makes no sense.
    """
    try:
        return Settings(
            confidence=options.confidence,
            shares=parse_shares(options.shares),
            guardrails=parse_limits(options.guardrail),
        )
    except ValidationError as error:
        raise ConfigurationError(f"experiment: {describe_validation_error(error)}") from error


def parse_shares(texts: Iterable[str]) -> dict[int | None, dict[str, float]]:
    """``[VERSION:]ARM=SHARE,…`` → shares by version (None: those not named).

    Raises:
        ConfigurationError: a text is not of that form.
    """
    shares: dict[int | None, dict[str, float]] = {}
    for text in texts:
        found = _SHARES.fullmatch(text)
        try:
            if found is None:
                raise ValueError(text)
            pairs = [part.split("=") for part in found[2].split(",")]
            own = {arm.strip(): float(share) for arm, share in pairs}
        except ValueError as error:
            raise ConfigurationError(
                f"--shares {text}: expected [VERSION:]ARM=SHARE,ARM=SHARE such as static=0.5,knee=0.5"
            ) from error
        shares[int(found[1]) if found[1] else None] = own
    return shares


def parse_limits(texts: Iterable[str]) -> dict[str, Limit]:
    """``NAME>=LIFT`` and ``NAME<=LIFT``, as a share or in percent → limit by outcome.

    Raises:
        ConfigurationError: a text is not of that form.
    """
    bounds: dict[str, dict[str, float]] = {}
    for text in texts:
        found = _LIMIT.fullmatch(text)
        try:
            if found is None:
                raise ValueError(text)
            limit = float(found[3]) / (100.0 if found[4] else 1.0)
        except ValueError as error:
            raise ConfigurationError(
                f"--guardrail {text}: expected NAME>=LIFT or NAME<=LIFT, such as 'hide<=0.02' or 'hide<=2%'"
            ) from error
        bounds.setdefault(found[1], {})["minimum_lift" if found[2] == ">=" else "maximum_lift"] = limit
    return {name: Limit(**bound) for name, bound in bounds.items()}
