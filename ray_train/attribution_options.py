"""The options that say which events count for a decision: one set, for ``join`` and ``experiment``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from ray_train.attribution import Attribution, MetricRule
from ray_train.logs import parse_instant
from triton_models.errors import ConfigurationError
from triton_models.surface import Surface, describe_validation_error

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def add_attribution_options(parser: argparse.ArgumentParser) -> None:
    """Where decisions and events are, and which events count."""
    add = parser.add_argument
    add("--decisions", required=True, metavar="D", help="the sidecar's decision log: folder, local or a URI")
    add(
        "--events",
        required=True,
        metavar="E",
        help="events in Parquet: request_id, timestamp, event, and optionally value and event_id",
    )
    add(
        "--attribution-window",
        default="24h",
        metavar="TIME",
        help="longest time from a decision to an event of it: 30m, 24h, 7d",
    )
    add(
        "--late-limit",
        default="1h",
        metavar="TIME",
        help="how much longer a request waits for its events before it is closed",
    )
    add("--as-of", metavar="ISO", help="the events are complete up to here; default: the clock")
    add("--after", metavar="ISO", help="only decisions from here on, such as next_after of the run before")
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME=RULE",
        help="mean: mean of its values, 0 without an event (all metrics that are not named); any: 1 if "
        "there is an event; sum; measured: mean, null without an event; may be repeated",
    )
    add("--bucket-mb", type=float, default=32, help="uncompressed input that one task aims at")
    add("--ray-address", metavar="ADDRESS", help="Ray cluster; default: RAY_ADDRESS, else a local one")


def attribution(options: argparse.Namespace, surface: Surface) -> Attribution:
    """The rules that the options ask for.

    Raises:
        ConfigurationError: they are no rules, or do not fit together or the surface.
        LogError: an instant is no instant.
    """
    if not options.bucket_mb > 0:
        raise ConfigurationError(f"--bucket-mb must be above 0, got {options.bucket_mb}")
    try:
        return Attribution(
            as_of=parse_instant(options.as_of) if options.as_of else datetime.now(UTC),
            window=duration("--attribution-window", options.attribution_window),
            late_limit=duration("--late-limit", options.late_limit),
            after=parse_instant(options.after) if options.after else None,
            metrics=metric_rules(options.metric, surface),
        )
    except ValidationError as error:
        raise ConfigurationError(describe_validation_error(error)) from error


def duration(option: str, text: str) -> timedelta:
    """``30m``, ``24h``, ``7d`` … → a time span.

    Raises:
        ConfigurationError: it is none.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"{option}: {text!r} is no time span such as 90s, 30m, 24h or 7d")
    try:
        return timedelta(seconds=float(found[1]) * _UNITS[found[2]])
    except OverflowError as error:
        raise ConfigurationError(f"{option}: {text!r} is too long") from error


def metric_rules(texts: Iterable[str], surface: Surface) -> dict[str, MetricRule]:
    """``hide=any`` … → rule by metric.

    Raises:
        ConfigurationError: no such metric or no such rule.
    """
    rules: dict[str, MetricRule] = {}
    for text in texts:
        name, _, rule = text.partition("=")
        if name not in surface.metrics:
            known = ", ".join(surface.metrics) or "none"
            raise ConfigurationError(f"--metric {text}: the surface has no metric {name!r}; it has {known}")
        try:
            rules[name] = MetricRule(rule)
        except ValueError as error:
            known = ", ".join(MetricRule)
            raise ConfigurationError(f"--metric {text}: {rule!r} is no rule; there are {known}") from error
    return rules
