"""``config.pbtxt`` parsed back with Triton's own protobuf schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.surfaces import small_surface
from triton_models.config_pbtxt import (
    MODEL_SHA256,
    GpuOptions,
    ModelSettings,
    build_config,
    config_json,
    config_parameters,
    config_text,
    parse_config,
    served_versions,
    warmup_file_names,
    warmup_files,
)
from triton_models.errors import ConfigurationError, RepositoryError
from triton_models.tensors import TensorSpec, input_specs, output_specs

SURFACE = small_surface()


def settings(**changes: Any) -> ModelSettings:
    base: dict[str, Any] = {
        "name": "value_network",
        "inputs": input_specs(SURFACE),
        "outputs": output_specs(SURFACE),
        "max_batch_size": 32,
        "warmup_batch_sizes": (1, 4),
        "input_rules": {"scalarization": "simplex"},
        "parameters": {"surface_fingerprint": "abc", "odd": 'quote " newline \n λ'},
    }
    return ModelSettings(**(base | changes))


def parsed(**changes: Any) -> Any:
    return parse_config(config_text(build_config(settings(**changes))), source="test")


def test_tensors_are_those_of_the_surface() -> None:
    config = parsed()
    types = {pb.TYPE_FP32: "FP32", pb.TYPE_INT64: "INT64"}
    for specs, tensors in ((input_specs(SURFACE), config.input), (output_specs(SURFACE), config.output)):
        assert [TensorSpec(t.name, types[t.data_type], tuple(t.dims)) for t in tensors] == list(specs)


def test_everything_that_a_backend_would_fill_in_is_stated() -> None:
    config = parsed(instance_count=2)
    assert (config.name, config.backend, config.max_batch_size) == ("value_network", "python", 32)
    assert [(g.kind, g.count) for g in config.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 2)]
    assert served_versions(config) == (1,)


def test_the_served_version_is_named() -> None:
    config = parsed(version=7)
    assert list(config.version_policy.specific.versions) == [7]
    assert json.loads(config_json(config))["version_policy"] == {"specific": {"versions": ["7"]}}


def test_a_configuration_without_a_named_version() -> None:
    assert served_versions(parse_config("version_policy { latest { num_versions: 1 } }", source="t")) == ()


def test_onnxruntime_runs_on_the_gpu() -> None:
    config = parsed(backend="onnxruntime")
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
    assert [(g.kind, g.count) for g in config.instance_group] == [(pb.ModelInstanceGroup.KIND_GPU, 1)]


def test_dynamic_batching_without_any_queue_policy() -> None:
    """A queue policy stalls release 2.51."""
    config = parsed()
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching == pb.ModelDynamicBatching()


def test_parameters_are_strings_and_read_back() -> None:
    config = parsed()
    assert config_parameters(config) == {
        "surface_fingerprint": "abc",
        "odd": 'quote " newline \n λ',
        "input_rules": '{"scalarization": "simplex"}',
        "intra_op_threads": "1",
    }
    assert json.loads(config.parameters["input_rules"].string_value) == {"scalarization": "simplex"}


def test_warm_up_satisfies_the_rules() -> None:
    config = parsed()
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 4]
    for warmup in config.model_warmup:
        assert set(warmup.inputs) == {spec.name for spec in input_specs(SURFACE)}
        assert warmup.inputs["scalarization"].input_data_file == "scalarization.FP32.4x2.ones"
        assert warmup.inputs["user_embedding"].zero_data
    assert {name: len(data) for name, data in warmup_files(settings()).items()} == {
        "scalarization.FP32.4x2.ones": 4 * 2 * 4
    }
    assert warmup_file_names(config) == set(warmup_files(settings()))
    assert warmup_files(settings(warmup_batch_sizes=())) == {}


def test_variable_dimensions_stay_variable_but_warm_up_is_concrete() -> None:
    config = parsed(inputs=(TensorSpec("x", "FP32", (-1, 3)),), input_rules={})
    assert list(config.input[0].dims) == [-1, 3]
    assert list(config.model_warmup[0].inputs["x"].dims) == [1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "tensorrt"}, "backend must be one of"),
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ({"instance_count": 0}, "instance_count"),
        ({"warmup_batch_sizes": (64,)}, "warm-up batch sizes must lie in 1..32"),
        ({"input_rules": {"nothing": "finite"}}, "do not exist: nothing"),
        ({"parameters": {"number": 3}}, "must be strings"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(**changes)


def test_text_that_is_no_configuration() -> None:
    with pytest.raises(RepositoryError, match=r"REPO/config.pbtxt: not a Triton model configuration"):
        parse_config("name: 3 nonsense", source="REPO/config.pbtxt")


def gpu(**options: Any) -> Any:
    return parsed(
        backend="onnxruntime", gpu=GpuOptions(**options), parameters={MODEL_SHA256: "0123456789abcdef" * 4}
    )


def accelerators(config: Any) -> dict[str, dict[str, str]]:
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return {item.name: dict(item.parameters) for item in found}


def test_cuda_calculates_in_float32_unless_tensorrt_is_asked_for() -> None:
    assert accelerators(gpu()) == {"cuda": {"use_tf32": "0"}}
    assert accelerators(parsed()) == {}


def test_tensorrt_has_one_profile_for_all_batch_sizes_and_a_cache_for_every_model() -> None:
    found = accelerators(gpu(tensorrt="fp16", engine_cache="/cache"))
    assert set(found) == {"tensorrt"}
    told = found["tensorrt"]
    assert told["precision_mode"] == "FP16" and told["trt_engine_cache_enable"] == "1"
    assert told["trt_engine_cache_path"] == "/cache/0123456789abcdef"
    for which, batch in (("min", 1), ("opt", 32), ("max", 32)):
        shapes = dict(item.split(":") for item in told[f"trt_profile_{which}_shapes"].split(","))
        assert shapes == {
            spec.name: "x".join(map(str, (batch, *spec.shape))) for spec in input_specs(SURFACE)
        }
    other = build_config(
        settings(
            backend="onnxruntime",
            gpu=GpuOptions(tensorrt="fp16", engine_cache="/cache"),
            parameters={MODEL_SHA256: "f" * 64},
        )
    )
    assert accelerators(other)["tensorrt"]["trt_engine_cache_path"] == "/cache/" + "f" * 16


def test_queue_options_are_those_that_were_asked_for() -> None:
    plain = parsed().dynamic_batching
    assert not plain.HasField("default_queue_policy") and plain.priority_levels == 0
    assert plain.max_queue_delay_microseconds == 0
    assert parsed(queue_delay_us=300).dynamic_batching.max_queue_delay_microseconds == 300
    asked = gpu(queue_timeout_ms=20, priority_levels=2).dynamic_batching
    assert asked.default_queue_policy.default_timeout_microseconds == 20_000
    assert asked.default_queue_policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert (asked.priority_levels, asked.default_priority_level) == (2, 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"gpu": {"tensorrt": "fp16"}}, "need --backend onnxruntime"),
        ({"gpu": {"queue_timeout_ms": 5}}, "need --backend onnxruntime"),
        ({"backend": "onnxruntime", "gpu": {"tensorrt": "fp8"}}, "tensorrt must be one of off, fp32, fp16"),
        ({"backend": "onnxruntime", "gpu": {"engine_cache": "here"}}, "absolute path"),
        ({"backend": "onnxruntime", "gpu": {"queue_timeout_ms": 0}}, "queue_timeout_ms must be at least 1"),
        ({"backend": "onnxruntime", "gpu": {"priority_levels": -1}}, "priority_levels must be at least 0"),
        ({"queue_delay_us": -1}, "queue_delay_us must lie in"),
        ({"max_batch_size": 10**9}, "max_batch_size is at most 65536"),
    ],
)
def test_impossible_gpu_options_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        settings(**(change | ({"gpu": GpuOptions(**change["gpu"])} if "gpu" in change else {})))
