from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from serve.access import Access, AccessConfig, Identity
from triton_models.errors import AccessError, ConfigurationError, ForbiddenError

VIEWER, OPERATOR = "viewer-token-0123456789", "operator-token-0123456789"
JSON = "application/json"


@pytest.fixture
def access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    (tmp_path / "viewers").write_text(f"# the dashboard's\n\ndash:{VIEWER}\n")
    monkeypatch.setenv("PUTS_TEST_OPERATORS", f"ada:{OPERATOR}\nanother-token-without-a-name\n")
    return Access(
        AccessConfig(viewer_tokens=str(tmp_path / "viewers"), operator_tokens="env:PUTS_TEST_OPERATORS")
    )


def change(access: Access, header: str | None, **changes: Any) -> Identity:
    local = {"peer": "127.0.0.1", "host": "localhost:8000", "content_type": JSON}
    return access.operator(header, **{**local, **changes})


def test_roles(access: Access) -> None:
    assert access.reader(f"Bearer {VIEWER}") == Identity(role="viewer", name="dash")
    assert access.reader(f"bearer {OPERATOR}") == Identity(role="operator", name="ada")
    assert change(access, f"Bearer {OPERATOR}", peer="10.0.0.9").name == "ada"
    assert change(access, "Bearer another-token-without-a-name").name is None
    with pytest.raises(ForbiddenError, match="viewer's"):
        change(access, f"Bearer {VIEWER}")


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {OPERATOR}", OPERATOR, f"Bearer {OPERATOR}x", "Bearer \udcff"],
)
def test_nobody(access: Access, header: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for ask in (access.reader, lambda h: change(access, h)):
            with pytest.raises(AccessError) as caught:
                ask(header)
            assert not isinstance(caught.value, ForbiddenError)
            assert "0123456789" not in str(caught.value)
    assert "0123456789" not in caplog.text
    assert "0123456789" not in repr(vars(access))


def test_without_tokens_reading_is_open_and_changes_are_refused() -> None:
    access = Access(AccessConfig())
    assert access.reader(None) is None
    with pytest.raises(ForbiddenError, match="--operator-tokens"):
        change(access, None)


def test_local_changes_have_to_be_allowed() -> None:
    access = Access(AccessConfig(allow_local_changes=True))
    for peer in ("127.0.0.1", "::1", "127.9.9.9"):
        assert change(access, None, peer=peer) == Identity(role="operator", name=None)
    for peer in ("10.0.0.1", None, "nonsense"):
        with pytest.raises(ForbiddenError, match="this machine"):
            change(access, None, peer=peer)
    for host in ("127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST", "localhost:80"):
        assert change(access, None, host=host).role == "operator"
    # A page at rebound.example, whose name was made to mean 127.0.0.1, is of the same origin as the sidecar.
    for host in ("rebound.example", "rebound.example:8000", "localhost.evil.example", "10.0.0.1", "", None):
        with pytest.raises(ForbiddenError, match="loopback"):
            change(access, None, host=host)
    for host in ("localhost@evil.example", "[::1", "127.0.0.1.evil.example:8000", "evil.example#localhost"):
        with pytest.raises(ForbiddenError, match="loopback"):
            change(access, None, host=host)
    for content_type in ("text/plain", "", "application/x-www-form-urlencoded"):
        with pytest.raises(ForbiddenError, match="content type"):
            change(access, None, content_type=content_type)


def test_with_tokens_local_changes_need_one_too(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(OPERATOR)
    access = Access(AccessConfig(operator_tokens=str(tmp_path / "tokens"), allow_local_changes=True))
    with pytest.raises(AccessError):
        change(access, None)


@pytest.mark.parametrize(
    ("text", "word"), [("short", "16"), ("", "empty"), ("# none\n", "none"), ("a b", "16")]
)
def test_bad_token_files(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigurationError, match=word):
        Access(AccessConfig(operator_tokens=str(tmp_path / "tokens")))
    for source in ("env:PUTS_NOT_SET", str(tmp_path / "missing")):
        with pytest.raises(ConfigurationError):
            Access(AccessConfig(viewer_tokens=source))
