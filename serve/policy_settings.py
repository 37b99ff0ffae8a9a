"""The options of ``python -m serve up`` for policies and tokens, as settings."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SQLITE = "sqlite:///"


def add_policy_options(up: argparse.ArgumentParser) -> None:
    """Add the options to the door's parser."""
    up.add_argument(
        "--policy-store",
        metavar="URL",
        help="database of operating policies: sqlite:///FILE, postgresql://USER@HOST/DB, or env:NAME, "
        "file:PATH that hold a URL with a password",
    )
    source = "FILE or env:NAME with one token a line (TOKEN or NAME:TOKEN)"
    up.add_argument("--operator-tokens", metavar="SOURCE", help=f"who may change policies: {source}")
    up.add_argument("--viewer-tokens", metavar="SOURCE", help=f"who may read them: {source}")
    up.add_argument(
        "--allow-local-changes",
        action="store_true",
        help="without tokens, let anybody on this machine change the policy (loopback only)",
    )


def policy_store_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The store, and where its last policy is kept for a restart without it.

    Paths are made absolute: replicas have working directories of their own.
    """
    url = str(given.get("url", ""))
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    copy = str(state / "prl-puts" / f"policy-{name}.json")
    if url.startswith(SQLITE) and len(url) > len(SQLITE) and not url.startswith(f"{SQLITE}:"):
        file = _absolute(url.removeprefix(SQLITE))
        url, copy = f"{SQLITE}{file}", f"{file}.last.json"
    elif url.startswith("file:"):
        url = f"file:{_absolute(url.removeprefix('file:'))}"
    return {"local_copy": copy, **given, "url": url}


def access_settings(options: argparse.Namespace, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sources of tokens, paths made absolute."""
    found = dict(given)
    for name in ("operator_tokens", "viewer_tokens"):
        source = getattr(options, name) or found.get(name)
        if source:
            found[name] = source if str(source).startswith("env:") else _absolute(str(source))
    if options.allow_local_changes:
        found["allow_local_changes"] = True
    return found


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
