"""Two replicas that listen themselves, each on its own port, over TLS. No Triton: production weights."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.serve.test_stack import request
from tests.support.certificates import Authority
from tests.support.up import wait_until_ready
from triton_models.surface import Surface


def ask(address: str, body: Any, trust: Path | None) -> Any:
    context = ssl.create_default_context(cafile=str(trust) if trust else None)
    headers = {"content-type": "application/json"}
    post = urllib.request.Request(f"{address}/v1/weights", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(post, timeout=20, context=context) as response:
        return json.loads(response.read())


def test_two_replicas_answer_directly_over_tls(homefeed: Surface, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls", "ours")
    signed = authority.sign("sidecar", "IP:127.0.0.1")
    settings = tmp_path / "sidecar.yaml"
    tls = {"certificate": str(signed.certificate), "private_key": str(signed.private_key)}
    data = {
        "surface": homefeed.to_dict(),
        "value_network": {"addresses": ["127.0.0.1:1"]},
        "num_replicas": 2,
        "http": {"port": 0, "ingress": "direct", "tls": tls},
    }
    settings.write_text(yaml.safe_dump(data))
    ready_file, log = tmp_path / "ready.json", tmp_path / "up.log"
    command = [
        sys.executable,
        "-m",
        "serve",
        "up",
        "--config",
        str(settings),
        "--ready-file",
        str(ready_file),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        addresses = wait_until_ready(process, ready_file, log)["addresses"]
        assert len(set(addresses)) == 2
        body = {"state": request(homefeed)["state"]}
        for address in addresses:
            assert address.startswith("https://")
            answer = ask(address, body, authority.certificate)
            assert (answer["source"], answer["reason"]) == ("production", "unavailable")
            with pytest.raises(urllib.error.URLError, match="certificate verify failed"):
                ask(address, body, None)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
