"""The dependency audit, with the real pip-audit and a vulnerability database (OSV's protocol) of our own."""

from __future__ import annotations

import datetime
import importlib.util
import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
spec = importlib.util.spec_from_file_location("audit", SCRIPT)
assert spec is not None and spec.loader is not None
audit = importlib.util.module_from_spec(spec)
sys.modules["audit"] = audit  # dataclasses look their module up
spec.loader.exec_module(audit)

HOLE = {
    "id": "PYSEC-2026-1",
    "aliases": ["CVE-2026-0001"],
    "summary": "a hole",
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "holey", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
            "versions": ["1.0"],
        }
    ],
}


class Database(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = {"vulns": [HOLE]} if asked["package"]["name"] == "holey" else {}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Database)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def run(tmp_path: Path, url: str, pins: str, ignored: str = "", *more: str) -> int:
    (tmp_path / "constraints.txt").write_text(pins)
    (tmp_path / "ignored.toml").write_text(ignored)
    options = [
        "--constraints",
        str(tmp_path / "constraints.txt"),
        "--ignored",
        str(tmp_path / "ignored.toml"),
    ]
    code: int = audit.main([*options, "--services", "osv", "--osv-url", url, *more])
    return code


ENTRY = '[[ignore]]\nid = "CVE-2026-0001"\npackage = "holey"\nreason = "not called"\nuntil = {}\n'


def test_a_hole_fails_unless_it_was_accepted_and_still_is(
    tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, database, "sound==1.0\n") == 0
    assert "1 packages audited (osv), 0 vulnerabilities" in capsys.readouterr().out
    assert run(tmp_path, database, "sound==1.0\nholey==1.0\n") == 1
    assert "FOUND holey 1.0: PYSEC-2026-1 (fixed in 1.1)" in capsys.readouterr().out
    assert run(tmp_path, database, "holey==1.0\n", ENTRY.format("2999-01-01")) == 0
    assert "accepted holey 1.0" in capsys.readouterr().out
    assert run(tmp_path, database, "holey==1.0\n", ENTRY.format("2020-01-01")) == 1
    assert run(tmp_path, database, "sound==1.0\n", ENTRY.format("2999-01-01")) == 0
    assert "no longer needed" in capsys.readouterr().out


def test_without_a_network_it_says_not_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1/query"
        assert run(tmp_path, url, "sound==1.0\n") == 0
        assert run(tmp_path, url, "sound==1.0\n", "", "--must") == 1
    assert "NOT AUDITED" in capsys.readouterr().out


def test_an_unexplained_entry_is_refused(tmp_path: Path, database: str) -> None:
    assert run(tmp_path, database, "sound==1.0\n", '[[ignore]]\nid = "CVE-1"\n') == 2


def test_the_ignore_file_of_the_project_is_well_formed() -> None:
    for entry in audit.read_ignored(audit.IGNORED):
        assert entry["until"] >= datetime.date.today(), f"look at {entry['id']} again"
