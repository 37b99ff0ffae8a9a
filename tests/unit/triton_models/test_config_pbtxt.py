"""``config.pbtxt`` parsed back with Triton's own protobuf schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.surfaces import small_surface
from triton_models.config_pbtxt import (
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
    assert not config.HasField("optimization"), "TensorRT is opt-in"


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
