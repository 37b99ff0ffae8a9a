"""The probe over a fake client: what it asks, and that no question can hang for ever."""

from __future__ import annotations

import threading
from typing import Any

from triton_models.probe import RPC_TIMEOUT_S, ModelProbe, ServerProbe


class FakeClient:
    def __init__(self) -> None:
        self.timeouts: list[float | None] = []
        self.shapes: list[list[int]] = []

    def get_model_config(self, model: str, *, as_json: bool, client_timeout: float | None = None) -> Any:
        self.timeouts.append(client_timeout)
        return {
            "config": {
                "max_batch_size": 8,
                "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["-1"]}],
            }
        }

    def async_infer(
        self, model: str, inputs: Any, *, callback: Any, client_timeout: float | None = None
    ) -> None:
        self.timeouts.append(client_timeout)
        self.shapes = [tensor.shape() for tensor in inputs]
        callback(None, RuntimeError("as told"))


def test_every_call_has_a_deadline() -> None:
    client = FakeClient()
    assert ModelProbe(client, "m").run(0.1) == "m: as told"
    assert client.timeouts == [RPC_TIMEOUT_S, RPC_TIMEOUT_S]
    assert client.shapes == [[1, 1]]


def test_after_a_failure_the_probe_asks_again_what_the_model_takes() -> None:
    """Another version, for another control surface, may be there by then."""
    probe, client = ServerProbe("127.0.0.1:9", ("m",)), FakeClient()
    probe.close()
    probe._client = client
    assert probe.run(1.0) == "m: as told"
    assert probe.run(1.0) == "m: as told"
    assert len(client.timeouts) == 4, "configuration and inference, each time"


class StoppedClient(FakeClient):
    """A stopped server: it does not even say what its model takes, until it is continued."""

    def __init__(self) -> None:
        super().__init__()
        self.continued = threading.Event()

    def get_model_config(self, model: str, *, as_json: bool, client_timeout: float | None = None) -> Any:
        assert self.continued.wait(10.0)
        return super().get_model_config(model, as_json=as_json, client_timeout=client_timeout)


def test_a_stopped_server_cannot_hold_up_the_probe() -> None:
    probe, client = ServerProbe("127.0.0.1:9", ("m",)), StoppedClient()
    probe.close()
    probe._client = client
    for _ in range(2):
        assert probe.run(0.02) == "m: no answer within 0.02 s"
    client.continued.set()
    assert probe.run(5.0) == "m: as told"
    assert client.timeouts == [RPC_TIMEOUT_S, RPC_TIMEOUT_S], "the question that was out was not repeated"
