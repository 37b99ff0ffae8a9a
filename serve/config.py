"""The sidecar's configuration: one frozen, typed object; impossible settings are refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serve.access import AccessConfig, is_loopback
from serve.breaker import BreakerConfig
from serve.decision_log_config import DecisionLogConfig
from serve.drift import DriftConfig
from serve.logs import LogConfig
from triton_models.errors import ConfigurationError, PutsError, ScalarizationError, SurfaceError
from triton_models.surface import Surface, describe_validation_error, load_surface, load_yaml
from triton_models.tensors import VALUE_NETWORK, state_specs

Address = Annotated[str, Field(pattern=r"^(https?://)?[^\s/]+:[0-9]{1,5}$")]
"""A KServe v2 endpoint: ``host:port`` of gRPC; or ``http://host:port`` (``https://``: with TLS) of HTTP with
the binary tensor extension, as Triton has it."""


def is_http(address: str) -> bool:
    """Whether an address is of HTTP; else it is of gRPC."""
    return address.startswith(("http://", "https://"))


STATE_TENSORS = ("user_embedding", "history_embedding", "history_action", "history_age_s", "context")

Milliseconds = Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]


_URL_PASSWORD = re.compile(r"^[a-z0-9+]+://[^/@:]*:[^/@]+@|[?&]password=", re.IGNORECASE)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClientTlsConfig(_Frozen):
    """TLS towards a server. Paths of PEM files, read when the connection's settings are made."""

    root_certificates: str | None = None
    """Whom to trust; None: gRPC's own list, of HTTP the system's."""
    certificate: str | None = None
    """Ours, where the server asks for one (mutual TLS)."""
    private_key: str | None = None
    server_name: str | None = None
    """Name that the server's certificate must carry, where it is not the address's host."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("tls: certificate and private_key belong together; give both or neither")
        return self


class ValueNetworkConfig(_Frozen):
    """Where the value network answers, and how long a request waits for it."""

    addresses: Annotated[tuple[Address, ...], Field(min_length=1)]
    """Endpoints, used in turn; each is checked for the surface on its own."""
    model: str = VALUE_NETWORK
    budget_ms: Milliseconds = 10.0
    """The sidecar's own wait, from the start of the request's calls. Nothing is cancelled when it ends."""
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Calls in flight per server and replica, late ones included; when the server to be asked has as many, a
    request is "overloaded". Several requests may share a call."""
    coalesce_ms: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 4.0
    """Longest time that a question beside a ranker waits for others to share its call, and only as long as
    the ranker's slack allows (serve.coalesce). 0: only what arrives together shares a call."""
    coalesce_rows: Annotated[int, Field(ge=1, le=1024)] = 32
    """Most questions of one call; fewer where the model's ``max_batch_size`` is smaller. 1: none shared."""
    rpc_timeout_s: Seconds = 10.0
    """Deadline of a call. Long on purpose: short ones can crash Triton 2.51 (server issue 7368)."""
    recheck_s: Seconds = 5.0
    """How often a healthy server's surface is read again."""
    retry_s: Seconds = 0.5
    """How often a server that was never reached is tried again."""
    breaker: BreakerConfig = BreakerConfig()
    """When a server is asked no more, and how it comes back. One breaker per server."""
    tls: ClientTlsConfig | None = None
    """None: in the clear."""

    @model_validator(mode="after")
    def _budget_inside_deadline(self) -> Self:
        _tls_fits(self.addresses, self.tls)
        if self.budget_ms >= self.rpc_timeout_s * 1000:
            raise ValueError(
                f"budget_ms {self.budget_ms} must be below rpc_timeout_s {self.rpc_timeout_s} "
                "(short gRPC deadlines can crash Triton)"
            )
        return self


class CandidateInput(_Frozen):
    """A feature of each candidate that callers send and the ranker takes."""

    datatype: Literal["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
    shape: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Of one candidate; the tensor is [candidates, *shape]."""


class RankerConfig(_Frozen):
    """Somebody's multi-task ranker behind KServe v2: candidate ids in, one score per head out."""

    addresses: Annotated[tuple[Address, ...], Field(min_length=1)]
    model: str = "ranker"
    timeout_ms: Milliseconds = 1000.0
    """The sidecar's wait for the ranker; after it the request fails with 503."""
    rpc_timeout_s: Seconds = 30.0
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] = 128
    """Calls in flight per server and replica, late ones included; when all servers have as many, a 503."""
    candidates_input: str = "candidate_ids"
    candidates_type: Literal["INT64", "BYTES"] = "INT64"
    candidate_inputs: dict[str, CandidateInput] = Field(default_factory=dict)
    """Features of the candidates that are passed on under these names. Where there are any, requests come in
    the binary form (serve.tensor_body), and all of them must be there."""
    state_inputs: dict[str, str] | None = None
    """State tensor → the ranker's input name. None: user_embedding and context, under these names."""
    output: str = "scores"
    """Output tensor FP32 [candidates, heads]."""
    heads: tuple[str, ...] | None = None
    """Columns of the output. None: the surface's heads, controlled ones first."""
    breaker: BreakerConfig = BreakerConfig()
    """When one of several servers is asked no more. A single one is always asked."""
    batched: bool = True
    """Whether the model has a batch dimension (``max_batch_size`` > 0)."""
    tls: ClientTlsConfig | None = None
    """None: in the clear."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _tls_fits(self.addresses, self.tls)
        if self.timeout_ms > self.rpc_timeout_s * 1000:
            raise ValueError(f"timeout_ms {self.timeout_ms} is above rpc_timeout_s {self.rpc_timeout_s}")
        taken = {self.candidates_input, *STATE_TENSORS} & set(self.candidate_inputs)
        if taken:
            raise ValueError(f"ranker.candidate_inputs: {', '.join(sorted(taken))} is taken already")
        if self.heads is not None and len(set(self.heads)) != len(self.heads):
            raise ValueError("ranker heads must be unique")
        return self


class PolicyStoreConfig(_Frozen):
    """The database of operating policies."""

    url: str
    """``sqlite:///FILE``, ``postgresql://USER@HOST/DATABASE``; or ``env:NAME`` or ``file:PATH`` that hold it:
    a password does not belong into a configuration or a command line."""
    poll_s: Annotated[float, Field(ge=0.01, le=1.0)] = 0.25
    """How often each replica asks for changes. A change is in force everywhere after one poll."""
    timeout_s: Seconds = 2.0
    """For an answer of the store; no request waits for it."""
    local_copy: str | None = None
    """File that keeps the last policy for a restart while the store is down."""

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if _URL_PASSWORD.search(self.url):
            raise ValueError(
                "policy_store.url holds a password; put the URL into the environment and say env:NAME"
            )
        return self


class HttpTlsConfig(_Frozen):
    """HTTPS for the sidecar's own port. Paths of PEM files on the machine of the replica.

    Callers are not asked for certificates: Ray Serve has no setting for that (``http_options`` knows key,
    certificate and a list of authorities, but not ``ssl_cert_reqs``). Where callers must show one, let the
    mesh or the ingress in front end TLS.
    """

    certificate: str
    """With the chain up to the authority, if there is one."""
    private_key: str


class HttpConfig(_Frozen):
    """Where the sidecar listens."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """0 is a free port."""
    keep_alive_s: Annotated[int, Field(ge=1)] = 75
    """Above the callers' pools' idle time; uvicorn's own 5 s breaks pooled connections."""
    ingress: Literal["auto", "direct", "proxy"] = "auto"
    """direct: every replica listens itself, on ``port``, ``port`` + 1, …, one for each; balance between them
    at the caller or with a load balancer. proxy: one port, Ray Serve's proxy in front, several times slower
    (FACTS.md). auto: direct for one replica, else proxy."""
    tls: HttpTlsConfig | None = None
    """None: HTTP in the clear."""


class Limits(_Frozen):
    """Largest request accepted."""

    candidates: Annotated[int, Field(ge=1)] = 5000
    k: Annotated[int, Field(ge=1)] = 1000
    body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024**2
    history: Annotated[int, Field(ge=1)] = 10_000
    header_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024
    """Names and values together."""
    body_timeout_s: Seconds = 10.0
    """From the first look at a body to its end: a trickling one must not hold a place for ever."""


def _tls_fits(addresses: tuple[str, ...], tls: ClientTlsConfig | None) -> None:
    clear = [address for address in addresses if address.startswith("http://")]
    if tls is not None and clear:
        raise ValueError(f"tls is configured, and {clear[0]} is in the clear; say https://")


def _as_surface(value: object) -> object:
    try:
        return Surface.from_dict(value) if isinstance(value, dict) else value
    except SurfaceError as error:
        raise ValueError(str(error)) from error


class SidecarConfig(_Frozen):
    """Everything one sidecar needs. Plain data in (:meth:`from_dict`), plain data out (:meth:`to_dict`)."""

    surface: Annotated[Surface, BeforeValidator(_as_surface)]
    value_network: ValueNetworkConfig
    ranker: RankerConfig | None = None
    """None: only ``/v1/weights`` is served."""
    scalarization: tuple[float, ...] | None = None
    """λ in the surface's order of objectives. None: equal parts."""
    expected_run_id: str | None = None
    """Run that the scalarization was chosen for. Another run's model is used all the same, with a warning."""
    control: bool = True
    """Off: production weights for everybody, the value network is not asked."""
    http: HttpConfig = HttpConfig()
    num_replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """They share the exploration's burst: where something else scales them, the most that there may be."""
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 256
    """Per replica. Ray Serve's default of 5 would queue requests in front of an idle replica."""
    metrics_dir: str | None = None
    """Folder through which the replicas of a node share their metrics (prometheus_client multiprocess)."""
    limits: Limits = Limits()
    policy_store: PolicyStoreConfig | None = None
    """None: the configuration's scalarization is the policy, and it has no versions."""
    access: AccessConfig = AccessConfig()
    logs: LogConfig = LogConfig()
    decision_log: DecisionLogConfig | None = None
    """None: decisions are not logged."""
    drift: DriftConfig = DriftConfig()
    """When the ranker's scores, or what is served, are not what they were."""

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        if self.scalarization is not None:
            try:
                self.surface.scalarization(self.scalarization)
            except ScalarizationError as error:
                raise ValueError(str(error)) from error
        if self.ranker is not None:
            self._check_ranker(self.ranker)
        if self.access.allow_local_changes and not is_loopback(self.http.host):
            raise ValueError(
                f"access.allow_local_changes is for a sidecar on loopback, http.host is {self.http.host}; "
                "configure operator_tokens"
            )
        return self

    def _check_ranker(self, ranker: RankerConfig) -> None:
        missing = sorted(set(self.surface.heads) - set(ranker.heads or self.surface.heads))
        if missing:
            raise ValueError(f"the ranker does not score {', '.join(missing)}, which the surface weighs")
        known = {spec.name for spec in state_specs(self.surface)}
        unknown = sorted(set(ranker.state_inputs or ()) - known)
        if unknown:
            raise ValueError(
                f"ranker.state_inputs names {', '.join(unknown)}; the state has {', '.join(sorted(known))}"
            )

    @classmethod
    def from_dict(cls, data: object, *, source: str = "sidecar configuration") -> Self:
        """Build from plain data.

        Raises:
            ConfigurationError: naming ``source``, the field and what is wrong.
        """
        if not isinstance(data, dict):
            raise ConfigurationError(f"{source}: expected a mapping with surface, value_network, …")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigurationError(f"{source}: {describe_validation_error(error)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data that :meth:`from_dict` reads back; what crosses to the replicas."""
        return self.model_dump(mode="json")


def read_settings(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file as plain data; ``surface`` may be a path relative to the file.

    Raises:
        ConfigurationError: the file cannot be read or is not a mapping.
    """
    try:
        data = load_yaml(path)
        if not isinstance(data, dict):
            raise ConfigurationError(f"{path}: expected a mapping of settings")
        if isinstance(data.get("surface"), str):
            data["surface"] = load_surface(Path(path).parent / data["surface"]).to_dict()
    except PutsError as error:
        raise ConfigurationError(str(error)) from error
    return data
