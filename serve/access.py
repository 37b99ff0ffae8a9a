"""Who may read policies and who may change them: bearer tokens with a role.

Viewers read, operators also change. Tokens come from files or the environment (:mod:`serve.secrets`), one a
line, as ``token`` or ``name:token``; the name becomes the author of a change. They are kept and compared as
SHA-256 digests, in constant time and always against all of them. Without tokens reading is open, and changes
are refused unless the sidecar listens on loopback and was told to allow them. Then three things keep pages in
a browser of this machine out: the caller's address is loopback; so is the ``Host`` that it asked for, which
a page whose own name was made to mean this machine (DNS rebinding) cannot hide; and the content type is one
that a page of another origin may not send unasked.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from serve.secrets import read_secret
from triton_models.errors import AccessError, ConfigurationError, ForbiddenError

Role = Literal["viewer", "operator"]

SHORTEST_TOKEN = 16

_NAMED = re.compile(r"^(?:([A-Za-z0-9_.@-]{1,64}):)?(\S+)$")


class AccessConfig(BaseModel):
    """Where the tokens are; not the tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    viewer_tokens: str | None = None
    """``env:NAME`` or a file: one token a line, ``token`` or ``name:token``."""
    operator_tokens: str | None = None
    allow_local_changes: bool = False
    """Without tokens: let anybody on this machine change the policy. Only for a sidecar on loopback."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who asks."""

    role: Role
    name: str | None
    """As the token file says it; None: it does not."""


@dataclass(frozen=True)
class _Known:
    digest: bytes
    identity: Identity


def is_loopback(host: str | None) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_loopback_host(header: str | None) -> bool:
    """Whether a ``Host`` header, with a port or without, names this machine and nothing else."""
    try:
        return header is not None and is_loopback(urlsplit(f"//{header}").hostname)
    except ValueError:
        return False


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _read(source: str | None, role: Role) -> list[_Known]:
    if source is None:
        return []
    known = []
    for line in read_secret(source, what=f"{role} tokens").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _NAMED.match(line.strip())
        if match is None or len(match[2]) < SHORTEST_TOKEN:
            raise ConfigurationError(
                f"{role} tokens in {source}: expected lines of token or name:token, "
                f"each token at least {SHORTEST_TOKEN} characters without spaces"
            )
        known.append(_Known(_digest(match[2]), Identity(role=role, name=match[1])))
    if not known:
        raise ConfigurationError(f"{role} tokens in {source}: there is none")
    return known


class Access:
    """Decides who may do what."""

    def __init__(self, config: AccessConfig) -> None:
        self._known = [*_read(config.operator_tokens, "operator"), *_read(config.viewer_tokens, "viewer")]
        self._allow_local = config.allow_local_changes

    @property
    def has_tokens(self) -> bool:
        """Whether anybody has to say who he is."""
        return bool(self._known)

    def _identify(self, authorization: str | None) -> Identity:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise AccessError("a bearer token is needed: Authorization: Bearer TOKEN")
        given, found = _digest(token.strip()), None
        for known in self._known:  # all of them, so that the time says nothing
            if hmac.compare_digest(known.digest, given) and found is None:
                found = known.identity
        if found is None:
            raise AccessError("the token is not known")
        return found

    def reader(self, authorization: str | None) -> Identity | None:
        """Who reads; None: nobody has to say so.

        Raises:
            AccessError: a token is needed, or not known.
        """
        return self._identify(authorization) if self._known else None

    def operator(
        self, authorization: str | None, *, peer: str | None, host: str | None, content_type: str
    ) -> Identity:
        """Who changes.

        Args:
            authorization: The header.
            peer: Address of the caller.
            host: The header: the name by which he asked for us.
            content_type: The header.

        Raises:
            AccessError: a token is needed, or not known.
            ForbiddenError: it is a viewer's, or changes are not allowed here.
        """
        if self._known:
            identity = self._identify(authorization)
            if identity.role != "operator":
                raise ForbiddenError("changing the policy needs an operator's token, this is a viewer's")
            return identity
        if not self._allow_local:
            raise ForbiddenError(
                "changes are refused: no operator tokens are configured (--operator-tokens FILE); "
                "on loopback, --allow-local-changes does without"
            )
        if not is_loopback(peer):
            raise ForbiddenError("changes without a token are for callers on this machine only")
        if not is_loopback_host(host):
            raise ForbiddenError("changes without a token are for http://localhost or a loopback address")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            # A page of another origin can send anything but this without being asked first.
            raise ForbiddenError("changes without a token need the content type application/json")
        return Identity(role="operator", name=None)
