"""``python -m serve policy list | show | apply | rollback``: talks to a running sidecar."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from serve.policy import STATIC
from serve.policy_client import PolicyClient
from triton_models.doors import say
from triton_models.errors import AccessError, ConfigurationError, PolicyError, PutsError
from triton_models.frontier import Frontier, load_frontier
from triton_models.yaml_files import load_yaml

TOKEN_VARIABLE = "PUTS_TOKEN"
URL_VARIABLE = "PUTS_URL"
DEFAULT_URL = "http://127.0.0.1:8000"

UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

KEPT = ("salt", "exploration", "excluded", "guardrails")
"""What a new operating point takes over from the policy in force."""

MOST_ACTIVATIONS = 20

CONTROL = "control"
"""Name of the arm of the users whom a ramp has not reached."""


def add_policy_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    policy = subparsers.add_parser("policy", help="operating policies of a running sidecar")
    commands = policy.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--url",
        default=os.environ.get(URL_VARIABLE, DEFAULT_URL),
        help=f"the sidecar (default: ${URL_VARIABLE}, or {DEFAULT_URL})",
    )
    common.add_argument(
        "--token",
        metavar="SOURCE",
        help=f"FILE or env:NAME that holds the token (default: env:{TOKEN_VARIABLE}, if set)",
    )
    listed = commands.add_parser("list", parents=[common], help="all policies, and what was in force when")
    listed.set_defaults(command=_list)
    show = commands.add_parser("show", parents=[common], help="a policy; without a number the one in force")
    show.add_argument("version", nargs="?", type=int)
    show.set_defaults(command=_show)
    _add_apply(commands, common)
    back = commands.add_parser("rollback", parents=[common], help="go back to the policy before")
    back.add_argument("--to", type=int, metavar="VERSION", help="or to this one")
    back.add_argument("--reason", required=True, help="why")
    back.set_defaults(command=_rollback)
    drift = commands.add_parser("drift", parents=[common], help="is it still what the policy was chosen for?")
    drift.add_argument("--baseline", action="store_true", help="it is: compare with what comes from now on")
    drift.set_defaults(command=_drift)


def _add_apply(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    apply = commands.add_parser("apply", parents=[common], help="put a policy in force")
    what = apply.add_mutually_exclusive_group(required=True)
    what.add_argument("--operating-point", metavar="LABEL", help="candidate of the frontier")
    what.add_argument("--static", action="store_true", help="production weights")
    what.add_argument("--policy", type=Path, metavar="FILE", help="a whole policy (YAML)")
    apply.add_argument("--frontier", type=Path, metavar="FILE", help="the reviewed frontier")
    apply.add_argument(
        "--ramp", metavar="STEPS", help="shares and how long each holds, like 1%%:1h,5%%:1d,25%%"
    )
    apply.add_argument(
        "--against",
        choices=("current", "static"),
        default="current",
        help="what the users get whom the ramp has not reached (default: current)",
    )
    apply.add_argument("--exploration", metavar="SHARE", help="like 1.25%%; default: as it is now")
    apply.add_argument("--reason", required=True, help="why")
    apply.add_argument("--force-reason", help="why it is applied although it is not on the frontier")
    apply.set_defaults(command=_apply)


def _client(options: argparse.Namespace) -> PolicyClient:
    source = options.token or (f"env:{TOKEN_VARIABLE}" if os.environ.get(TOKEN_VARIABLE) else None)
    return PolicyClient(options.url, token_source=source)


# ---------------------------------------------------------------------- commands


def _list(options: argparse.Namespace) -> int:
    client = _client(options)
    listed, current = client.get("/v1/policies"), client.get("/v1/policy")
    for policy in listed["policies"]:
        mark = "*" if policy["version"] == current["version"] else " "
        moment = _moment(policy["created_at"])
        say(f"{mark} {policy['version']:>5}  {moment}  {policy['author']}: {policy['reason']}")
    if current["version"] == 0:
        say("*     0  the sidecar's configuration")
    say("in force, newest first:")
    for one in listed["activations"][:MOST_ACTIVATIONS]:
        say(f"  {one['version']:>5}  {_moment(one['at'])}  {one['author']}: {one['reason']}")
    return 0


def _moment(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(unix_s))


def _show(options: argparse.Namespace) -> int:
    path = "/v1/policy" if options.version is None else f"/v1/policies/{options.version}"
    say(json.dumps(_client(options).get(path), indent=2, ensure_ascii=False))
    return 0


def _apply(options: argparse.Namespace) -> int:
    client = _client(options)
    current = client.get("/v1/policy")
    frontier = load_frontier(options.frontier) if options.frontier else None
    change: dict[str, Any] = {
        "policy": change_of(options, current, frontier),
        "reason": options.reason,
        "author": os.environ.get("USER") or None,
        "frontier": None if frontier is None else frontier.to_dict(),
        "surface_fingerprint": None if frontier is None else frontier.surface_object.fingerprint,
        "force_reason": options.force_reason,
        "expected_sequence": current["sequence"],
    }
    done = client.post("/v1/policies", change)
    say(f"policy {done['version']} is in force (it was {current['version']}); by {done['author']}")
    return 0


def _rollback(options: argparse.Namespace) -> int:
    client = _client(options)
    current = client.get("/v1/policy")
    body = {
        "reason": options.reason,
        "author": os.environ.get("USER") or None,
        "version": options.to,
        "expected_sequence": current["sequence"],
    }
    done = client.post("/v1/policy/rollback", body)
    say(f"policy {done['version']} is in force again (it was {current['version']}); by {done['author']}")
    return 0


def _drift(options: argparse.Namespace) -> int:
    client = _client(options)
    if options.baseline:
        state = client.post("/v1/drift/baseline", {"author": os.environ.get("USER") or None})
    else:
        state = client.get("/v1/drift")
    say(json.dumps(state, indent=2, ensure_ascii=False))
    return 0


# ---------------------------------------------------------------------- from options to a policy


def change_of(
    options: argparse.Namespace, current: dict[str, Any], frontier: Frontier | None
) -> dict[str, Any]:
    """The policy that the options describe, as plain data.

    Raises:
        PutsError: they do not fit together.
    """
    if options.policy:
        if options.ramp or options.exploration:
            raise ConfigurationError("--policy says it all: put ramp and exploration into the file")
        return read_policy_file(options.policy)
    if frontier is None and not options.static:
        raise ConfigurationError("--operating-point names a candidate of a frontier; say --frontier as well")
    policy: dict[str, Any] = {name: current["policy"][name] for name in KEPT}
    if current.get("excluded_users") and "users" not in policy["excluded"]:
        raise AccessError(
            f"the policy in force keeps {current['excluded_users']} users out of exploration, and only an "
            "operator is told who they are; give the operator's token, so that they stay out (--token)"
        )
    label: str = STATIC
    choice: Any = STATIC
    if frontier is not None and not options.static:
        label = options.operating_point
        choice = list(frontier.candidate(label).scalarization)
    arm = {"name": label, "choice": choice}
    if options.ramp:
        against = {"choice": "static"} if options.against == "static" else main_arm(current)
        policy["arms"] = [{"name": CONTROL, **against}, arm]
        policy["ramp"] = {"arm": label, "steps": parse_ramp(options.ramp)}
    else:
        policy["arms"] = [arm]
    if options.exploration:
        share = parse_share(options.exploration)
        before = policy["exploration"]
        policy["exploration"] = {**before, "share": share, "cap": max(share, before["cap"])}
    return policy


def main_arm(current: dict[str, Any]) -> dict[str, Any]:
    """What most users get now."""
    shares = current["shares"]
    largest = max(current["policy"]["arms"], key=lambda arm: shares[arm["name"]])
    return {"choice": largest["choice"], "cohorts": largest["cohorts"]}


def parse_share(text: str) -> float:
    """``1.25%`` or ``0.0125``.

    Raises:
        ConfigurationError: it is neither.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(%?)", text.strip())
    share = float(match[1]) / (100.0 if match[2] else 1.0) if match else -1.0
    if not 0.0 <= share <= 1.0:
        raise ConfigurationError(f"expected a share like 1.25% or 0.0125, got {text!r}")
    return share


def parse_ramp(text: str) -> list[dict[str, float]]:
    """``1%:1h,5%:1d,25%`` as steps.

    Raises:
        ConfigurationError: it is something else.
    """
    steps = []
    for part in text.split(","):
        share, colon, hold = part.strip().partition(":")
        step = {"share": parse_share(share)}
        if colon:
            match = re.fullmatch(r"([0-9]*\.?[0-9]+)([smhd])", hold.strip())
            if match is None:
                raise ConfigurationError(f"--ramp: expected a time like 30s, 10m, 1h or 2d, got {hold!r}")
            step["hold_s"] = float(match[1]) * UNIT_S[match[2]]
        steps.append(step)
    return steps


def read_policy_file(path: Path) -> dict[str, Any]:
    """A policy in YAML.

    Raises:
        PolicyError: the file cannot be read or holds something else.
    """
    try:
        data = load_yaml(path)
    except PutsError as error:
        raise PolicyError(str(error)) from error
    if not isinstance(data, dict):
        raise PolicyError(f"{path}: expected a mapping with arms, ramp, exploration, …")
    return data
