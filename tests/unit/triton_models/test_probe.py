"""The probe over a fake client: what it asks, and that no question can hang for ever."""

from __future__ import annotations

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
