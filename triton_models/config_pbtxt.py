"""``config.pbtxt`` of a served model, made from its tensor specification with Triton's own schema.

Choices that FACTS.md of this project measured and that hold for every model we publish:

* ``dynamic_batching {}`` without any queue policy: a queue policy stalls release 2.51 for 500 ms;
* batch size and instance count are always stated: left out, backends fill in their own;
* the served version is named (``version_policy { specific { versions: N } }``), never "the latest": what
  lies in the repository is not what serves;
* parameters are ``string_value`` only: other kinds make the model vanish from the status table;
* warm-up once per stated batch size, so that no live request pays for the first run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from triton_models.errors import ConfigurationError, RepositoryError
from triton_models.tensors import TensorSpec

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

Backend = Literal["python", "onnxruntime"]
BACKENDS: tuple[Backend, ...] = ("python", "onnxruntime")

MODEL_SHA256 = "model_sha256"
"""Parameter of a version: SHA-256 of its model file."""

TensorRT = Literal["off", "fp32", "fp16"]
TENSORRT: tuple[TensorRT, ...] = get_args(TensorRT)

LARGEST_BATCH = 65_536
"""Of the exported graph's batch dimension."""

INPUT_RULES = "input_rules"
"""Parameter: JSON of input name → rule, checked per request by the Python backend; see InputRules."""

INTRA_OP_THREADS = "intra_op_threads"
"""Parameter: threads of one ONNX Runtime session in the Python backend."""

InputRules = Mapping[str, str]
"""Input name → ``finite`` (no NaN, no infinity), ``simplex`` (finite, ≥ 0, not all zero), ``codes:K``
(integers 0..K) or ``codes:K1,K2,…`` (the same for each entry of the last dimension)."""

WARMUP_FOLDER = "warmup"


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """What only newer servers with Triton's own ``onnxruntime`` backend may be told."""

    tensorrt: TensorRT = "off"
    """Build TensorRT engines in this precision instead of running the CUDA execution provider."""
    engine_cache: str = "/tmp/tensorrt"  # inside the container, whose root is read-only
    """Folder of the container where TensorRT engines are kept between starts."""
    queue_timeout_ms: int | None = None
    """Reject a request that waited so long in the queue. Stalls release 24.10: measure it first."""
    priority_levels: int = 0
    """Levels of priority, 1 the highest and the default of a request; 0: none. ``sweep --triton`` asks for
    the lowest."""

    def __post_init__(self) -> None:
        if self.tensorrt not in TENSORRT:
            raise ConfigurationError(f"tensorrt must be one of {', '.join(TENSORRT)}, got {self.tensorrt!r}")
        if not self.engine_cache.startswith("/"):
            raise ConfigurationError(f"engine_cache must be an absolute path, got {self.engine_cache!r}")
        if self.queue_timeout_ms is not None and self.queue_timeout_ms < 1:
            raise ConfigurationError(f"queue_timeout_ms must be at least 1, got {self.queue_timeout_ms}")
        if self.priority_levels < 0:
            raise ConfigurationError(f"priority_levels must be at least 0, got {self.priority_levels}")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Everything that goes into one ``config.pbtxt``."""

    name: str
    """Triton's name of the model, and of its folder."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backend: Backend = "python"
    """``python``: ONNX Runtime inside Triton's Python backend; ``onnxruntime``: Triton's own, on a GPU."""
    max_batch_size: int = 64
    """Largest batch that the dynamic batcher forms."""
    instance_count: int = 1
    """Model instances (one process each with the Python backend)."""
    intra_op_threads: int = 1
    """CPU threads of one instance."""
    warmup_batch_sizes: tuple[int, ...] = (1,)
    """Batch sizes that are run once before the model is ready."""
    queue_delay_us: int = 0
    """How long the batcher may wait for more requests."""
    gpu: GpuOptions = GpuOptions()
    """Options of the ``onnxruntime`` backend."""
    version: int = 1
    """The version that this configuration describes and serves."""
    input_rules: InputRules = field(default_factory=dict)
    """What each input must satisfy; see :data:`InputRules`."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Free metadata, readable through the protocol."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigurationError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        for what in ("max_batch_size", "instance_count", "intra_op_threads", "version"):
            if getattr(self, what) < 1:
                raise ConfigurationError(f"{what} must be at least 1, got {getattr(self, what)}")
        if self.max_batch_size > LARGEST_BATCH:
            raise ConfigurationError(f"max_batch_size is at most {LARGEST_BATCH}, got {self.max_batch_size}")
        if any(not 1 <= size <= self.max_batch_size for size in self.warmup_batch_sizes):
            raise ConfigurationError(
                f"warm-up batch sizes must lie in 1..{self.max_batch_size}, "
                f"got {list(self.warmup_batch_sizes)}"
            )
        if not 0 <= self.queue_delay_us <= 1_000_000:
            raise ConfigurationError(f"queue_delay_us must lie in 0..1000000, got {self.queue_delay_us}")
        if self.backend == "python" and self.gpu != GpuOptions():
            raise ConfigurationError(
                "TensorRT, a queue timeout and priority levels need --backend onnxruntime: the embedded "
                "server has no GPU, and any queue policy stalls its release for 500 ms"
            )
        names = {spec.name for spec in self.inputs}
        if unknown := sorted(set(self.input_rules) - names):
            raise ConfigurationError(f"input rules name inputs that do not exist: {', '.join(unknown)}")
        if not all(isinstance(value, str) for value in self.parameters.values()):
            raise ConfigurationError("parameters must be strings: Triton drops models with other kinds")


def import_model_config() -> Any:
    """Triton's protobuf module.

    Raises:
        ConfigurationError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise ConfigurationError(
            f"tritonclient[grpc] is missing ({error}); pip install 'prl-puts[embedded]'"
        ) from error
    return model_config_pb2


def build_config(settings: ModelSettings) -> ModelConfig:
    """The settings as Triton's ``ModelConfig`` message."""
    pb = import_model_config()
    config = pb.ModelConfig(
        name=settings.name, backend=settings.backend, max_batch_size=settings.max_batch_size
    )
    for spec in settings.inputs:
        config.input.add(name=spec.name, data_type=_pb_type(pb, spec), dims=spec.shape)
    for spec in settings.outputs:
        config.output.add(name=spec.name, data_type=_pb_type(pb, spec), dims=spec.shape)
    _add_batching(config, settings)
    config.version_policy.specific.versions.append(settings.version)
    group = pb.ModelInstanceGroup
    if settings.backend == "onnxruntime":
        # The CUDA execution provider is what KIND_GPU selects in this backend; TensorRT is opt-in.
        config.default_model_filename = "model.onnx"
        config.instance_group.add(kind=group.KIND_GPU, count=settings.instance_count)
        if settings.gpu.tensorrt != "off":
            _add_tensorrt(config, settings)
        else:
            _add_cuda(config)
    else:
        config.instance_group.add(kind=group.KIND_CPU, count=settings.instance_count)
    for batch_size in settings.warmup_batch_sizes:
        _add_warmup(pb, config, settings, batch_size)
    for key, value in _parameters(settings).items():
        config.parameters[key].string_value = value
    return config


def _add_batching(config: Any, settings: ModelSettings) -> None:
    batching, gpu = config.dynamic_batching, settings.gpu
    batching.SetInParent()
    if settings.queue_delay_us:
        batching.max_queue_delay_microseconds = settings.queue_delay_us
    if gpu.priority_levels:
        batching.priority_levels = gpu.priority_levels
        batching.default_priority_level = 1
    if gpu.queue_timeout_ms is not None:
        # REJECT is the default action on a timeout.
        batching.default_queue_policy.default_timeout_microseconds = gpu.queue_timeout_ms * 1000


def _add_cuda(config: Any) -> None:
    """The CUDA execution provider in float32: TF32, its default, would cost the parity with torch."""
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
    accelerator.parameters["use_tf32"] = "0"


def _add_tensorrt(config: Any, settings: ModelSettings) -> None:
    """The TensorRT execution provider with one fixed profile: an engine is built once, for all batch sizes.

    Without profiles, every batch size that is larger than any before builds the engine anew, for minutes,
    while requests wait. Keys are those of Triton's onnxruntime backend. Every model file has a cache of its
    own: the key of an engine knows the graph's names, but not its weights.
    """
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    cache = f"{settings.gpu.engine_cache}/{settings.parameters.get(MODEL_SHA256, settings.name)[:16]}"
    parameters = {
        "precision_mode": settings.gpu.tensorrt.upper(),
        "max_workspace_size_bytes": str(1 << 30),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
    }
    for which, batch in (("min", 1), ("opt", settings.max_batch_size), ("max", settings.max_batch_size)):
        parameters[f"trt_profile_{which}_shapes"] = ",".join(
            f"{spec.name}:{'x'.join(map(str, (batch, *concrete_shape(spec))))}" for spec in settings.inputs
        )
    for key, value in parameters.items():
        accelerator.parameters[key] = value


def _parameters(settings: ModelSettings) -> dict[str, str]:
    own = {INPUT_RULES: json.dumps(dict(settings.input_rules), sort_keys=True)}
    if settings.backend == "python":
        own[INTRA_OP_THREADS] = str(settings.intra_op_threads)
    else:
        own["intra_op_thread_count"] = str(settings.intra_op_threads)
    return {**settings.parameters, **own}


def _pb_type(pb: Any, spec: TensorSpec) -> int:
    return int(getattr(pb, spec.triton_type))


def _add_warmup(pb: Any, config: Any, settings: ModelSettings, batch_size: int) -> None:
    warmup = config.model_warmup.add(name=f"batch_{batch_size}", batch_size=batch_size)
    for spec in settings.inputs:
        entry = warmup.inputs[spec.name]
        entry.data_type = _pb_type(pb, spec)
        entry.dims.extend(concrete_shape(spec))
        if settings.input_rules.get(spec.name) == "simplex":
            entry.input_data_file = warmup_file(spec, settings)
        else:
            entry.zero_data = True


def warmup_file(spec: TensorSpec, settings: ModelSettings) -> str:
    """Name of the file in the model's ``warmup`` folder for an input that zeros would not satisfy.

    The folder is shared by all versions of the model, so the name says what the file holds.
    """
    largest = max(settings.warmup_batch_sizes, default=0)
    sizes = "x".join(map(str, (largest, *concrete_shape(spec))))
    return f"{spec.name}.{spec.datatype}.{sizes}.ones"


def warmup_files(settings: ModelSettings) -> dict[str, bytes]:
    """Contents of the ``warmup`` folder: file name → raw bytes, enough for the largest batch."""
    largest = max(settings.warmup_batch_sizes, default=0)
    return {
        warmup_file(spec, settings): np.ones((largest, *concrete_shape(spec)), dtype=spec.dtype).tobytes()
        for spec in settings.inputs
        if largest and settings.input_rules.get(spec.name) == "simplex"
    }


def warmup_file_names(config: ModelConfig) -> set[str]:
    """Files of the ``warmup`` folder that a configuration reads."""
    entries = (entry for warmup in config.model_warmup for entry in warmup.inputs.values())
    return {entry.input_data_file for entry in entries if entry.input_data_file}


def served_versions(config: ModelConfig) -> tuple[int, ...]:
    """Versions that a configuration names; empty where it says "latest" or "all"."""
    return tuple(int(version) for version in config.version_policy.specific.versions)


def config_json(config: ModelConfig) -> str:
    """The message as the JSON that the protocol's load request takes."""
    from google.protobuf import json_format

    return str(json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None))


def concrete_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape with every variable dimension set to one."""
    return tuple(1 if size < 0 else size for size in spec.shape)


def config_text(config: ModelConfig) -> str:
    """The message as ``config.pbtxt``."""
    from google.protobuf import text_format

    return "# Generated by python -m triton_models; do not edit.\n" + str(
        text_format.MessageToString(config, as_utf8=True)
    )


def parse_config(text: str, *, source: str) -> ModelConfig:
    """Read ``config.pbtxt`` with Triton's schema.

    Raises:
        RepositoryError: the text does not fit the schema.
    """
    from google.protobuf import text_format

    pb = import_model_config()
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{source}: not a Triton model configuration: {error}") from error


def config_parameters(config: ModelConfig) -> dict[str, str]:
    """The parameters of a configuration as plain strings."""
    return {key: value.string_value for key, value in config.parameters.items()}
