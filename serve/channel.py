"""A reused way to one model at one address: what the clients of value network and ranker are built on.

The address says which way: ``host:port`` is gRPC, ``http://host:port`` is HTTP/1.1 with tensors as bytes.
gRPC balances between all servers behind one name, HTTP is cheaper: a call through it takes about 0.3 ms less
of a core of ours (``benchmarks/RESULTS.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from serve.config import ClientTlsConfig, is_http
from serve.grpc_wire import GrpcWire
from serve.http_wire import HttpWire
from serve.wire import Headers, Wire, array_of
from triton_models.errors import UpstreamError, UpstreamInvalidError, UpstreamUnavailableError


def open_wire(address: str, model: str, rpc_timeout_s: float, tls: ClientTlsConfig | None) -> Wire:
    """The way that an address asks for. It connects when it is used.

    Raises:
        ConfigurationError: a certificate or key cannot be read.
    """
    return (HttpWire if is_http(address) else GrpcWire)(address, model, rpc_timeout_s, tls)


class InferenceChannel:
    """Calls to one model at one address. Made inside the event loop that uses it."""

    def __init__(
        self, address: str, model: str, rpc_timeout_s: float, tls: ClientTlsConfig | None = None
    ) -> None:
        self.name = address
        self.model = model
        self.who = f"{model} at {address}"
        self.wire = open_wire(address, model, rpc_timeout_s, tls)
        self.max_rows = 1
        """Most rows of a request: the model's ``max_batch_size``, once :meth:`parameters` has read it."""
        self.described_version: str | None = None
        """The version that :meth:`parameters` read of last; None: it named none, or several."""

    async def infer(
        self, request: bytes, outputs: Sequence[str], headers: Headers
    ) -> tuple[str, list[npt.NDArray[Any]]]:
        """Send one request; the version that answered, and the outputs in the order asked for.

        Raises:
            UpstreamUnavailableError: nobody answers.
            UpstreamRefusedError: the server says that the request is wrong.
            UpstreamInvalidError: an error came back, or not these outputs.
        """
        try:
            version, found = await self.wire.infer(request, headers)
            return version, [array_of(self.who, name, found[name]) for name in outputs]
        except UpstreamError:
            raise
        except KeyError as error:
            raise UpstreamInvalidError(f"{self.who}: the answer has no output {error.args[0]}") from error
        except Exception as error:  # the seam: whatever a foreign library throws ends here
            raise self.wire.mapped(error, self.who) from error

    async def parameters(self) -> dict[str, str]:
        """Parameters of the served model.

        Raises:
            UpstreamUnavailableError: nobody answers, or the model is not loaded.
        """
        try:
            described = await self.wire.describe()
        except Exception as error:  # the seam
            raise UpstreamUnavailableError(str(self.wire.mapped(error, self.who))) from error
        self.max_rows = max(1, described.max_batch_size)
        # A configuration names the version that it is of, as export writes it: no second call that could
        # already be answered by the next one.
        self.described_version = described.version
        return described.parameters

    async def ready(self) -> bool:
        """Whether the server says that the model is ready."""
        return await self.wire.ready()

    async def close(self) -> None:
        """Give the connections back."""
        await self.wire.close()
