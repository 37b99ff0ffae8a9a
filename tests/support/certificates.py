"""Certificates made on the spot: an authority, and what it has signed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    private_key: Path


class Authority:
    """Signs for names; another one's signatures are worth nothing to those who trust this one."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "1", "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate),
        )

    def sign(self, name: str, alternatives: str) -> Certificate:
        """A certificate for ``subjectAltName`` entries such as ``DNS:triton.internal,IP:127.0.0.1``."""
        key, request = self._folder / f"{name}.key", self._folder / f"{name}.csr"
        extension, signed = self._folder / f"{name}.ext", self._folder / f"{name}.pem"
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        extension.write_text(f"subjectAltName={alternatives}\n")
        _openssl(
            *("x509", "-req", "-days", "1", "-in", request, "-CA", self.certificate, "-CAkey", self._key),
            *("-CAcreateserial", "-extfile", extension, "-out", signed),
        )
        return Certificate(signed, key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)
