"""A real inference of every model of a Triton server, as the test of whether it works.

Readiness is not that test: it stays true when the Python process behind a model is dead, and with a
wrong NumPy a model is ready and answers nothing. The probe's inputs come from the configuration that
the server itself reports, so it fits any model.

A probe never cancels and sets no short deadline: both can crash Triton 2.51. It stops waiting, and
while the late answer is still out it sends nothing new.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from triton_models.backend import INSTALL_HINT
from triton_models.config_pbtxt import INPUT_RULES
from triton_models.errors import ServerError

_DTYPES: dict[str, tuple[str, type[np.generic]]] = {
    "TYPE_FP32": ("FP32", np.float32),
    "TYPE_FP64": ("FP64", np.float64),
    "TYPE_INT64": ("INT64", np.int64),
    "TYPE_INT32": ("INT32", np.int32),
    "TYPE_BOOL": ("BOOL", np.bool_),
}
RPC_TIMEOUT_S = 60.0
"""Deadline of a call; long, because short ones are dangerous."""


def import_grpc() -> Any:
    """The gRPC client module.

    Raises:
        ServerError: it is not installed.
    """
    try:
        import tritonclient.grpc
    except ImportError as error:
        raise ServerError(f"tritonclient[grpc] is missing ({error}); {INSTALL_HINT}") from error
    return tritonclient.grpc


class _Pending:
    """One inference under way."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.problem: str | None = "no answer in time"

    def complete(self, result: Any, error: Exception | None) -> None:
        self.problem = str(error) if error is not None else _empty_output(result)
        self.done.set()


def _empty_output(result: Any) -> str | None:
    """The NumPy ≥ 2 trap: outputs of the right shape without data."""
    response = result.get_response()
    if not response.outputs:
        return "the answer has no outputs"
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if not raw and int(np.prod(output.shape)) > 0:
            return f"output {output.name} came back empty"
    return None


class ModelProbe:
    """Real inferences of one model over an open client."""

    def __init__(self, client: Any, model: str) -> None:
        self.model = model
        self._client = client
        self._inputs = _probe_inputs(client, model)
        self._pending: _Pending | None = None

    @property
    def waiting(self) -> bool:
        """Whether an answer is still out."""
        return self._pending is not None

    def run(self, timeout_s: float) -> str | None:
        """What is wrong with the model, or None when it answered within ``timeout_s``."""
        if self._pending is None:
            self._pending = pending = _Pending()
            try:
                self._client.async_infer(
                    self.model, self._inputs, callback=pending.complete, client_timeout=RPC_TIMEOUT_S
                )
            except Exception as error:
                pending.complete(None, error)
        pending = self._pending
        if not pending.done.wait(timeout_s):
            return f"{self.model}: no answer within {timeout_s:g} s"
        self._pending = None
        return None if pending.problem is None else f"{self.model}: {pending.problem}"


class _Opening:
    """A probe in the making: a stopped server keeps the question what its model takes waiting as well."""

    def __init__(self, client: Any, model: str) -> None:
        self._done = threading.Event()
        self._result: ModelProbe | Exception = ServerError("not asked yet")
        threading.Thread(target=self._open, args=(client, model), name="triton-probe", daemon=True).start()

    def _open(self, client: Any, model: str) -> None:
        try:
            self._result = ModelProbe(client, model)
        except Exception as error:  # raised in wait(), to whoever asked
            self._result = error
        self._done.set()

    def wait(self, timeout_s: float) -> ModelProbe | None:
        """The probe, or None while there is no answer."""
        if not self._done.wait(timeout_s):
            return None
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def _probe_inputs(client: Any, model: str) -> list[Any]:
    grpc = import_grpc()
    config = client.get_model_config(model, as_json=True, client_timeout=RPC_TIMEOUT_S)["config"]
    rules: dict[str, str] = {}
    if INPUT_RULES in config.get("parameters", {}):
        import json

        rules = json.loads(config["parameters"][INPUT_RULES]["string_value"])
    batch = [1] if int(config.get("max_batch_size", 0)) > 0 else []
    inputs = []
    for item in config["input"]:
        if item["data_type"] not in _DTYPES:
            raise ServerError(f"model {model}: cannot probe an input of type {item['data_type']}")
        datatype, dtype = _DTYPES[item["data_type"]]
        shape = batch + [max(int(size), 1) for size in item["dims"]]
        fill = 1 if rules.get(item["name"]) == "simplex" else 0
        tensor = grpc.InferInput(item["name"], shape, datatype)
        tensor.set_data_from_numpy(np.full(shape, fill, dtype=dtype))
        inputs.append(tensor)
    return inputs


class ServerProbe:
    """Real inferences of every model of one server."""

    def __init__(self, address: str, models: tuple[str, ...]) -> None:
        self._client = import_grpc().InferenceServerClient(address)
        self._names = models
        self._probes: dict[str, ModelProbe] = {}
        self._openings: dict[str, _Opening] = {}

    def server_ready(self) -> bool:
        """Whether the server says that it is ready."""
        try:
            return bool(self._client.is_server_ready(client_timeout=RPC_TIMEOUT_S))
        except Exception:  # refused, reset, not yet listening: all mean "not yet"
            return False

    def run(self, timeout_s: float) -> str | None:
        """The first thing that is wrong, or None when every model answered within ``timeout_s`` in all."""
        deadline = time.monotonic() + timeout_s
        for name in self._names:
            try:
                probe = self._probes.get(name) or self._open(name, max(deadline - time.monotonic(), 0.01))
            except Exception as error:
                return f"{name}: {error}"
            if probe is None:
                return f"{name}: no answer within {timeout_s:g} s"
            problem = probe.run(max(deadline - time.monotonic(), 0.01))
            if problem is not None:
                if not probe.waiting:
                    # Another version may take other tensors: the next probe asks what they are.
                    del self._probes[name]
                return problem
        return None

    def _open(self, name: str, timeout_s: float) -> ModelProbe | None:
        if name not in self._openings:
            self._openings[name] = _Opening(self._client, name)
        opening = self._openings[name]
        try:
            probe = opening.wait(timeout_s)
        except Exception:
            del self._openings[name]
            raise
        if probe is not None:
            del self._openings[name]
            self._probes[name] = probe
        return probe

    def close(self) -> None:
        """Close the connection; only after the server's end where a call may be out."""
        self._client.close()
