"""From the command line to a policy. A running sidecar answers in the integration test test_policy_live."""

from __future__ import annotations

import argparse
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from serve.cli import main
from serve.policy import PolicyBody, parse
from serve.policy_cli import change_of, parse_ramp, parse_share
from serve.policy_settings import access_settings, policy_store_settings
from tests.support.frontiers import frontier_data
from tests.unit.serve.support import SURFACE
from tests.unit.serve.test_policy import policy
from triton_models.errors import AccessError, ConfigurationError, FrontierError, PolicyError
from triton_models.frontier import parse_frontier

FRONTIER = parse_frontier(frontier_data(SURFACE), source="test")


def options(**changes: Any) -> argparse.Namespace:
    names = "policy operating_point static ramp exploration"
    return argparse.Namespace(**{**dict.fromkeys(names.split()), "against": "current", **changes})


def current(**changes: Any) -> dict[str, Any]:
    one = policy(**changes)
    shown = {"policy": one.model_dump(mode="json"), "shares": one.shares(0.0)}
    return shown | {"excluded_users": len(one.excluded.users)}


def built(given: argparse.Namespace, now: dict[str, Any]) -> PolicyBody:
    return parse(PolicyBody, change_of(given, now, FRONTIER), source="test")


def test_an_operating_point_for_everybody_keeps_the_rest() -> None:
    now = current(salt="s", exploration={"share": 0.01}, excluded={"users": ["vip"]})
    body = built(options(operating_point="knee"), now)
    assert [(arm.name, arm.choice) for arm in body.arms] == [("knee", (0.75, 0.25))]
    assert (body.salt, body.exploration.share, body.excluded.users) == ("s", 0.01, {"vip"})
    assert body.ramp is None


def test_users_who_are_not_told_of_are_not_let_in_again() -> None:
    now = current(excluded={"users": ["vip"], "placements": ["checkout"]})
    del now["policy"]["excluded"]["users"]  # as a viewer sees it
    with pytest.raises(AccessError, match="keeps 1 users out"):
        change_of(options(operating_point="knee"), now, FRONTIER)


def test_static_needs_no_frontier_and_keeps_the_rest() -> None:
    now = current(salt="s", exploration={"share": 0.01})
    body = parse(PolicyBody, change_of(options(static=True), now, None), source="test")
    assert [(arm.name, arm.choice) for arm in body.arms] == [("static", "static")]
    assert (body.salt, body.exploration.share) == ("s", 0.01)


def test_a_ramp_is_against_what_most_users_have_now() -> None:
    arms = [
        {"name": "a", "share": 0.2, "choice": "static"},
        {"name": "b", "share": 0.8, "choice": [0.5, 0.5], "cohorts": {"core": "static"}},
    ]
    body = built(options(operating_point="knee", ramp="1%:1h,5%:1d,25%"), current(arms=arms))
    assert [arm.name for arm in body.arms] == ["control", "knee"]
    assert body.arms[0].choice == (0.5, 0.5)
    assert body.arms[0].cohorts == {"core": "static"}
    assert body.ramp is not None
    assert [(s.share, s.hold_s) for s in body.ramp.steps] == [(0.01, 3600.0), (0.05, 86_400.0), (0.25, None)]
    static = built(options(operating_point="knee", ramp="10%", against="static"), current(arms=arms))
    assert static.arms[0].choice == "static"
    assert static.shares(0.0) == {"control": 0.9, "knee": 0.1}


@pytest.mark.parametrize(
    ("text", "share", "cap"), [("1.25%", 0.0125, 0.0125), ("0.5", 0.5, 0.5), ("0", 0, 0.0125)]
)
def test_exploration(text: str, share: float, cap: float) -> None:
    body = built(options(operating_point="knee", exploration=text), current())
    assert (body.exploration.share, body.exploration.cap) == (share, cap)


def test_mistakes(tmp_path: Path) -> None:
    for text in ("", "x", "101%", "-1%", "1.1", "1%%"):
        with pytest.raises(ConfigurationError):
            parse_share(text)
    for text in ("1%:", "1%:5", "1%:1w", "1%:1h,"):
        with pytest.raises(ConfigurationError):
            parse_ramp(text)
    with pytest.raises(FrontierError, match="knee"):
        change_of(options(operating_point="nothing"), current(), FRONTIER)
    with pytest.raises(ConfigurationError, match="--frontier"):
        change_of(options(operating_point="knee"), current(), None)
    with pytest.raises(ConfigurationError, match="file"):
        change_of(options(policy=tmp_path / "p.yaml", ramp="1%"), current(), None)
    with pytest.raises(PolicyError, match=r"p\.yaml"):
        change_of(options(policy=tmp_path / "p.yaml"), current(), None)


def test_paths_of_replicas_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = policy_store_settings({"url": "sqlite:///p.db"})
    assert store == {"url": f"sqlite:///{tmp_path}/p.db", "local_copy": f"{tmp_path}/p.db.last.json"}
    assert policy_store_settings({"url": "sqlite:///p.db", "local_copy": "x"})["local_copy"] == "x"
    remote = policy_store_settings({"url": "env:STORE", "poll_s": 0.1})
    assert (remote["url"], remote["poll_s"]) == ("env:STORE", 0.1)
    assert remote["local_copy"].startswith(str(tmp_path / "state"))
    assert policy_store_settings({"url": "file:u"})["url"] == f"file:{tmp_path}/u"
    given = argparse.Namespace(operator_tokens="o", viewer_tokens=None, allow_local_changes=False)
    assert access_settings(given, {"viewer_tokens": "env:V"}) == {
        "operator_tokens": f"{tmp_path}/o",
        "viewer_tokens": "env:V",
    }


class Elsewhere(BaseHTTPRequestHandler):
    """Some other server."""

    answers: ClassVar[dict[str, tuple[int, bytes]]] = {
        "/v1/policy": (200, b"<html>"),
        "/v1/policies/1": (502, b"bad gateway"),
        "/v1/policies/2": (404, json.dumps({"error": {"type": "x", "message": "there is none"}}).encode()),
    }

    def do_GET(self) -> None:
        status, body = self.answers[self.path]
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_answers_is_no_sidecar(elsewhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    for version, word in ((None, "like a sidecar"), ("1", "502"), ("2", "there is none")):
        words = ["policy", "show", *([version] if version else []), "--url", elsewhere]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert word in error
        assert len(error.strip().splitlines()) == 1


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["policy", "list", "--url", f"http://127.0.0.1:{port}"]) == 2
    assert "nobody answers" in capsys.readouterr().err
    assert main(["policy", "list", "--url", "ftp://x"]) == 2
