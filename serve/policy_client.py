"""A small client of the policy routes; blocking, for the command line."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from serve.secrets import read_secret
from triton_models.errors import (
    AccessError,
    ConfigurationError,
    PolicyConflictError,
    PolicyError,
    UpstreamInvalidError,
    UpstreamUnavailableError,
)

TIMEOUT_S = 15.0


class PolicyClient:
    """Asks one sidecar."""

    def __init__(self, url: str, *, token_source: str | None = None) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigurationError(f"--url: expected http://HOST:PORT, got {url!r}")
        self._url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if token_source is not None:
            self._headers["authorization"] = f"Bearer {read_secret(token_source, what='token')}"

    def get(self, path: str) -> Any:
        """Read; see :meth:`post` for the errors."""
        return self._ask(urllib.request.Request(self._url + path, headers=self._headers))

    def post(self, path: str, data: dict[str, Any]) -> Any:
        """Send a change; fields that are None are left out.

        Raises:
            PolicyError, AccessError: the sidecar refused, in its own words.
            UpstreamError: it does not answer, or not like a sidecar.
        """
        body = json.dumps({name: value for name, value in data.items() if value is not None}).encode()
        return self._ask(urllib.request.Request(self._url + path, data=body, headers=self._headers))

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code, error.read()) from None
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise UpstreamUnavailableError(f"nobody answers at {self._url}: {reason}") from error
        except ValueError as error:
            raise UpstreamInvalidError(f"{self._url} does not answer like a sidecar: {error}") from error

    def _refused(self, status: int, body: bytes) -> Exception:
        try:
            message = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return UpstreamInvalidError(f"{self._url} answers with status {status}; is it a sidecar?")
        if status in (401, 403):
            return AccessError(message)
        if status == 503:
            return UpstreamUnavailableError(message)
        return PolicyConflictError(message) if status == 409 else PolicyError(message)
