"""Two replicas that listen themselves, each on its own port, over TLS; no value network, a slow ranker.

Ray's own handling of a request puts an ``X-Request-ID`` of its own beside the sidecar's: that is how to tell
from outside who has handled one.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.stand_ins.behaviour import Behaviour
from benchmarks.stand_ins.process import StandInProcess
from tests.integration.serve.test_stack import request
from tests.support.certificates import Authority
from tests.support.up import wait_until_ready
from triton_models.surface import Surface

RANKER_S = 2.0


def ask(address: str, body: Any, trust: Path | None, route: str = "weights") -> Any:
    context = ssl.create_default_context(cafile=str(trust) if trust else None)
    headers = {"content-type": "application/json"}
    post = urllib.request.Request(f"{address}/v1/{route}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(post, timeout=20, context=context) as response:
        assert len(response.headers.get_all("x-request-id")) == 1, "it went through Ray's handling"
        return json.loads(response.read())


@pytest.fixture
def slow_ranker(homefeed: Surface, tmp_path: Path) -> Iterator[str]:
    """Its gRPC address."""
    surface = tmp_path / "surface.yaml"
    surface.write_text(yaml.safe_dump(homefeed.to_dict()))
    with StandInProcess("ranker", surface, Behaviour(extra_ms=1000.0 * RANKER_S)) as ranker:
        yield ranker.address


def test_two_replicas_answer_directly_over_tls_and_end_when_they_have(
    homefeed: Surface, slow_ranker: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "tls", "ours")
    signed = authority.sign("sidecar", "IP:127.0.0.1")
    settings = tmp_path / "sidecar.yaml"
    tls = {"certificate": str(signed.certificate), "private_key": str(signed.private_key)}
    data = {
        "surface": homefeed.to_dict(),
        "value_network": {"addresses": ["127.0.0.1:1"]},
        "ranker": {"addresses": [slow_ranker], "timeout_ms": 20_000},
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
        # What was begun when the end is asked for is answered: the replicas drain.
        with ThreadPoolExecutor() as pool:
            begun = [
                pool.submit(ask, address, request(homefeed), authority.certificate, "rank")
                for address in addresses * 2
            ]
            time.sleep(RANKER_S / 2)
            assert not any(call.done() for call in begun)
            process.terminate()
            assert [len(call.result()["items"]) for call in begun] == [3] * 4
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
