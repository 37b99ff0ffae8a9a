"""A real Prometheus on loopback, and what a PromQL expression names."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser

PROMETHEUS = shutil.which("prometheus")
NO_PROMETHEUS = "no prometheus on this machine (Debian package prometheus)"

SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""

SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$")
LABEL = re.compile(r'(\w+)="(?:[^"\\]|\\.)*"')


def exposed(*texts: str) -> dict[str, set[str]]:
    """Sample name → label names, of Prometheus texts."""
    # Not prometheus_client's parser: it adds _total to the names of counters that lack it, as Triton's do.
    found: dict[str, set[str]] = {}
    for line in "\n".join(texts).splitlines():
        if sample := SAMPLE.match(line):
            found.setdefault(sample[1], set(SCRAPED)).update(LABEL.findall(sample[2] or ""))
    return found


def what_is_wrong(promql: str, known: Mapping[str, set[str]]) -> list[str]:
    """Metrics and labels that an expression names and ``known`` lacks.

    Raises:
        ValueError: it is not PromQL.
    """
    problems: list[str] = []

    def names(expression: Any) -> set[str]:
        found: set[str] = set()
        promql_parser.walk(expression, lambda node: _selected(node, found))
        return found

    def _selected(node: Any, found: set[str]) -> None:
        selector = getattr(node, "vector_selector", node)
        if isinstance(selector, promql_parser.VectorSelector):
            found.add(selector.name)
            if selector.name not in known:
                problems.append(f"there is no metric {selector.name}")
                return
            for matcher in selector.matchers.matchers:
                if matcher.name not in known[selector.name]:
                    problems.append(f"{selector.name} has no label {matcher.name}")

    def check(node: Any) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            for name in names(node.expr):
                for label in node.modifier.labels:
                    if label not in known.get(name, {label}):
                        problems.append(f"{name} has no label {label}")

    expression = promql_parser.parse(promql)
    names(expression)
    promql_parser.walk(expression, check)
    return sorted(set(problems))


@dataclass(frozen=True)
class Prometheus:
    address: str

    def ask(self, path: str, **parameters: Any) -> Any:
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.loads(response.read())["data"]

    def values(self, promql: str) -> list[float]:
        """Values of an expression now."""
        data = self.ask("query", query=promql)
        rows = (
            [data["result"]] if data["resultType"] == "scalar" else [row["value"] for row in data["result"]]
        )
        return [float(value) for _, value in rows]


@contextmanager
def prometheus_running(
    folder: Path, targets: Mapping[str, str], every: str = "500ms"
) -> Iterator[Prometheus]:
    """Scrape ``targets`` (job → URL); loopback, a free port, ended with the block."""
    assert PROMETHEUS is not None
    jobs = [
        {
            "job_name": job,
            "metrics_path": urllib.parse.urlsplit(url).path,
            "static_configs": [{"targets": [urllib.parse.urlsplit(url).netloc]}],
        }
        for job, url in targets.items()
    ]
    config = folder / "prometheus.yml"  # JSON is YAML
    config.write_text(json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": jobs}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            try:
                up = server.ask("targets")["activeTargets"]
            except (OSError, urllib.error.URLError):
                up = []
            if len(up) == len(targets) and all(target["health"] == "up" for target in up):
                break
            assert time.monotonic() < deadline, (log.read_text(), up)
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)
