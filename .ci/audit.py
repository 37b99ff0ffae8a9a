"""``make audit``: known vulnerabilities in the pinned dependencies (constraints.txt), by pip-audit.

Exit 0: audited and clean, or NOT AUDITED because no vulnerability database could be reached, which is said in
one line that cannot be missed (exit 1 with ``--must``, for a release). Exit 1: a vulnerability that
``.ci/audit-ignore.toml`` does not list with a reason and a date until which the reason holds. Exit 2: the
ignore file is malformed.

PyPI's own database is asked first, then OSV (``--osv-url`` for a mirror).
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IGNORED = ROOT / ".ci" / "audit-ignore.toml"
FIELDS = {"id", "package", "reason", "until"}
LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an audit came to."""

    audited: int = 0
    unknown: list[str] = field(default_factory=list)
    """Packages that the database does not know."""
    found: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """Entries of the ignore file that nothing needs any more."""


def read_ignored(path: Path) -> list[dict[str, Any]]:
    """Reviewed entries: ``[[ignore]]`` with id, package, reason and until (a date).

    Raises:
        ValueError: an entry that lacks one of them.
    """
    entries: list[dict[str, Any]] = tomllib.loads(path.read_text()).get("ignore", [])
    for entry in entries:
        complete = entry.keys() == FIELDS and isinstance(entry["until"], datetime.date) and entry["reason"]
        if not complete:
            raise ValueError(f"{path}: every [[ignore]] needs {', '.join(sorted(FIELDS))}; got {entry}")
    return entries


def judge(report: dict[str, Any], ignored: list[dict[str, Any]], today: datetime.date) -> Verdict:
    """Compare pip-audit's report with what was accepted."""
    unknown, found, accepted, used = [], [], [], set()
    audited = 0
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
            continue
        audited += 1
        for hole in package["vulns"]:
            names = {hole["id"], *hole.get("aliases", ())}
            fixed = ", ".join(hole.get("fix_versions", ())) or "no version yet"
            text = f"{package['name']} {package['version']}: {hole['id']} (fixed in {fixed})"
            match = next((e for e in ignored if e["id"] in names and e["package"] == package["name"]), None)
            if match is not None and match["until"] >= today:
                accepted.append(f"{text}: {match['reason']}")
                used.add(match["id"])
            else:
                found.append(text + (f"; accepted until {match['until']} only" if match else ""))
    stale = [f"{e['id']} ({e['package']})" for e in ignored if e["id"] not in used]
    return Verdict(
        audited=audited, unknown=unknown, found=found, accepted=accepted, stale=stale if audited else []
    )


def ask(service: str, constraints: Path, osv_url: str | None) -> tuple[dict[str, Any] | None, str]:
    """pip-audit's report, or None and why there is none."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(constraints), "--no-deps"]
    command += ["--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    command += ["--vulnerability-service", service]
    command += ["--osv-url", osv_url] if osv_url else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"{service}: no answer within {LIMIT_S:g} s"
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return None, f"{service}: {last[:200]}"
    if all("skip_reason" in package for package in report["dependencies"]):
        return None, f"{service}: knows none of the packages (a mirror without its database?)"
    return report, ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, judge, tell."""
    parser = argparse.ArgumentParser(description="known vulnerabilities in constraints.txt")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--ignored", type=Path, default=IGNORED)
    parser.add_argument("--services", nargs="+", default=["pypi", "osv"], choices=["pypi", "osv"])
    parser.add_argument("--osv-url")
    parser.add_argument("--must", action="store_true", help="fail where no database can be reached")
    options = parser.parse_args(arguments)
    try:
        ignored = read_ignored(options.ignored)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"audit: {error}\n")
        return 2
    reasons = []
    for service in options.services:
        report, reason = ask(service, options.constraints, options.osv_url)
        if report is not None:
            return _tell(judge(report, ignored, datetime.date.today()), service)
        reasons.append(reason)
    sys.stdout.write(
        f"audit: NOT AUDITED, no vulnerability database could be reached: {'; '.join(reasons)}\n"
    )
    return 1 if options.must else 0


def _tell(verdict: Verdict, service: str) -> int:
    lines = [f"audit: {verdict.audited} packages audited ({service}), {len(verdict.found)} vulnerabilities"]
    lines += [f"audit: FOUND {text}" for text in verdict.found]
    lines += [f"audit: accepted {text}" for text in verdict.accepted]
    lines += [f"audit: no longer needed in the ignore file: {text}" for text in verdict.stale]
    if verdict.unknown:
        lines.append(f"audit: not known to {service}: {', '.join(verdict.unknown)}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if verdict.found else 0


if __name__ == "__main__":
    raise SystemExit(main())
