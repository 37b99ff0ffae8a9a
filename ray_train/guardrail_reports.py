"""Measured lifts, told to a running sidecar, which ends a ramp that breaches a limit of its policy.

The sidecar takes what is about the ramp in force, so only the latest policy version is told.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray_train.experiment_report import Experiment
from triton_models.errors import ConfigurationError, UpstreamInvalidError, UpstreamUnavailableError

PATH = "/v1/policy/guardrail-metrics"
TIMEOUT_S = 10.0


def prepare_reporting(
    url: str | None, token_file: str | None, arm: str | None
) -> Callable[[Experiment], str] | None:
    """How to report, and what came of it in a line; None if nothing is to be. Checked before the long work.

    Raises:
        ConfigurationError: the URL is none, or there is no token to be read.
    """
    if url is None:
        return None
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ConfigurationError(f"--report-to: expected http://HOST:PORT or https://HOST, got {url}")
    if token_file is None:
        raise ConfigurationError("--report-to needs --token-file, a file with the operator token")
    try:
        token = Path(token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--token-file {token_file}: cannot be read") from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigurationError(f"--token-file {token_file}: expected one token")
    reporter = Reporter(url=url.rstrip("/") + PATH, token=token)

    def send(experiment: Experiment) -> str:
        bodies = list(report_bodies(experiment, reported_arm(experiment, arm)))
        for body in bodies:
            answer = reporter.post(body)
            if answer.get("rolled_back"):
                return f"reported to {url}, which ended the ramp: {answer.get('reason')}"
        return f"reported: {len(bodies)} lifts of policy version {experiment.latest_version} to {url}"

    return send


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """Posts to one sidecar."""

    url: str
    token: str

    def __repr__(self) -> str:  # the token stays out of logs
        return f"Reporter(url={self.url!r})"

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell one lift; the sidecar's answer.

        Raises:
            UpstreamUnavailableError: the sidecar does not answer.
            UpstreamInvalidError: it refuses, with its reason; or what answers is no sidecar.
        """
        request = urllib.request.Request(
            self.url,
            data=json.dumps(body, allow_nan=False).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {self.token}"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                reason = " ".join(error.read(500).decode(errors="replace").split())[:200]
            raise UpstreamInvalidError(f"{self.url}: refused with {error.code}: {reason}") from error
        except (ValueError, TypeError) as error:
            raise UpstreamInvalidError(
                f"{self.url}: the answer is no JSON object; is it a sidecar?"
            ) from error
        except OSError as error:
            raise UpstreamUnavailableError(f"{self.url}: cannot be reached ({error})") from error


def reported_arm(experiment: Experiment, arm: str | None) -> str:
    """The arm to report: the one named, or the only treatment.

    Raises:
        ConfigurationError: it is not there, or there are several.
    """
    if arm is None and len(experiment.treatments) == 1:
        return experiment.treatments[0]
    if arm not in experiment.treatments:
        known = ", ".join(experiment.treatments)
        raise ConfigurationError(f"--report-arm: expected one of {known}, got {arm or 'none'}")
    return arm


def report_bodies(experiment: Experiment, arm: str) -> Iterator[dict[str, Any]]:
    """What to post: every outcome's lift that is known, under the latest policy version.

    Raises:
        ConfigurationError: its lifts mix times in which the arms had other shares: no ramp is to end, or to
            go on, for the time of day's sake.
    """
    version = experiment.latest_version
    if version in experiment.mixed_versions:
        raise ConfigurationError(
            f"--report-to: not told: the arms' shares under policy version {version} changed too often to "
            "compare like times with like; give --after the last change of the ramp"
        )
    cell = experiment.cell(arm, version if experiment.versions else None)
    for name, effect in cell.effects.items() if cell is not None else ():
        if effect.lift is not None and effect.interval is not None:
            yield {
                "policy_version": version,
                "metric": name,
                "lift": effect.lift,
                "interval": list(effect.interval),
            }
