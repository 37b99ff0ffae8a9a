"""TLS towards the model servers: real handshakes on loopback, over gRPC and over HTTP."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from serve.clients import TritonRankerClient, TritonValueClient
from serve.config import ClientTlsConfig, RankerConfig, ValueNetworkConfig
from tests.integration.serve.test_clients import GOOD, Recorder
from tests.support.certificates import Authority, Certificate
from tests.support.wires import http_answer
from tests.unit.serve.support import STATE, SURFACE
from triton_models.encoding import encode_state
from triton_models.errors import UpstreamUnavailableError

LAMBDA = np.array([0.8, 0.2])


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def server_certificate(ours: Authority) -> Certificate:
    return ours.sign("triton", "DNS:triton.internal")


async def serving(server: Certificate, trusts: Path) -> tuple[Any, str]:
    """A server that shows its certificate and asks for one."""
    recorder = Recorder()
    recorder.outputs = {**GOOD, "scores": np.zeros((1, 2, 4), dtype=np.float32)}
    credentials = grpc.ssl_server_credentials(
        [(server.private_key.read_bytes(), server.certificate.read_bytes())],
        root_certificates=trusts.read_bytes(),
        require_client_auth=True,
    )
    grpc_server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(recorder, grpc_server)
    port = grpc_server.add_secure_port("127.0.0.1:0", credentials)
    await grpc_server.start()
    return grpc_server, f"127.0.0.1:{port}"


async def serving_https(server: Certificate, trusts: Path) -> tuple[Any, str]:
    """The same over HTTP."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.private_key)
    context.load_verify_locations(trusts)
    context.verify_mode = ssl.CERT_REQUIRED

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(int(head.lower().split("content-length: ")[-1].split("\r\n")[0]))
                scores = {"scores": np.zeros((1, 2, 4), dtype=np.float32)}
                writer.write(http_answer(scores if "/ranker/" in head else GOOD))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    https = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    return https, f"https://127.0.0.1:{https.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("way", ["grpc", "https"])
def test_mutual_tls_and_what_is_refused(
    ours: Authority, server_certificate: Certificate, tmp_path: Path, way: str
) -> None:
    client = ours.sign("sidecar", "DNS:sidecar.internal")
    stranger = Authority(tmp_path, "stranger").sign("sidecar", "DNS:sidecar.internal")
    good = {
        "root_certificates": str(ours.certificate),
        "certificate": str(client.certificate),
        "private_key": str(client.private_key),
        "server_name": "triton.internal",
    }
    refused: list[dict[str, Any] | None] = [
        None,
        {**good, "root_certificates": str(tmp_path / "stranger.pem")},
        {**good, "server_name": "somebody.else"},
        {**good, "certificate": None, "private_key": None},
        {
            **good,
            "certificate": str(stranger.certificate),
            "private_key": str(stranger.private_key),
        },
    ]

    async def main() -> None:
        begin = serving if way == "grpc" else serving_https
        server, address = await begin(server_certificate, ours.certificate)
        tensors = encode_state(SURFACE, STATE)
        tls = ClientTlsConfig.model_validate(good)
        network = ValueNetworkConfig(addresses=(address,), tls=tls)
        value = TritonValueClient(SURFACE, network, address)
        assert (await value.choose(tensors, LAMBDA, {})).action == 4
        ranker = TritonRankerClient(SURFACE, RankerConfig(addresses=(address,), tls=tls), address)
        assert (await ranker.score(tensors, [1, 2], {})).shape == (2, 4)
        for settings in refused:
            network = ValueNetworkConfig.model_validate({"addresses": [address], "tls": settings})
            outsider = TritonValueClient(SURFACE, network, address)
            with pytest.raises(UpstreamUnavailableError):
                await outsider.choose(tensors, LAMBDA, {})
            await outsider.close()
        await value.close()
        await ranker.close()
        if way == "grpc":
            await server.stop(None)
        else:
            server.close()

    asyncio.run(main())
