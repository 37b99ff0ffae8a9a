"""Number formats: close ones pass, others are refused with what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.runs import write_untrained_run
from tests.support.surfaces import small_surface
from triton_models import precision
from triton_models.cli import main
from triton_models.errors import ParityError, RunError
from triton_models.export import export_run, parity_cases
from triton_models.onnx_export import to_onnx
from triton_models.repository import require_model
from triton_models.runs import load_run
from triton_models.state_sample import SAMPLE, load_states, pack_states

SURFACE = small_surface()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_run(SURFACE, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def float32(run: Path) -> bytes:
    return to_onnx(SURFACE, load_run(run).load_network())


def test_half_precision_is_judged_on_logged_states_and_published(run: Path, tmp_path: Path) -> None:
    report = export_run(run, tmp_path / "repository", precision="float16")
    assert report.judgement is not None
    assert report.judgement.choices == 25 * len(load_states(SURFACE, run)["user_embedding"])
    assert 0.999 <= report.judgement.agreement <= 1.0
    assert 1e-6 < report.judgement.difference < 2e-3, "a float16 model that equals float32 is none"
    parameters = require_model(tmp_path / "repository", "value_network").parameters
    assert parameters["precision"] == "float16"
    assert float(parameters["value_tolerance"]) == precision.VALUE_BOUND["float16"]


def test_a_month_in_seconds_does_not_overflow_half_precision(run: Path, float32: bytes) -> None:
    states = load_states(SURFACE, run)
    states["history_age_s"][:] = 3e7
    half = precision.variant(SURFACE, load_run(run).load_network(), float32, "float16", states)
    assert precision.judge(SURFACE, float32, half, "float16", states).difference < 2e-3


def test_int8_that_chooses_differently_is_refused_and_nothing_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(run), "--repository", str(tmp_path / "repository"), "--precision", "int8"]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "int8: " in error and "choices on logged states agree" in error and "nothing was written" in error
    assert not (tmp_path / "repository").exists()


def test_int8_is_a_model_of_eight_bits(run: Path, float32: bytes) -> None:
    import onnx

    states = load_states(SURFACE, run)
    model = onnx.load_model_from_string(
        precision.variant(SURFACE, load_run(run).load_network(), float32, "int8", states)
    )
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") > 3
    int8 = onnx.TensorProto.INT8
    assert sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == int8) > 2000


def test_what_this_machine_cannot_run_cannot_be_judged(run: Path, float32: bytes) -> None:
    states = load_states(SURFACE, run)
    brain = precision.variant(SURFACE, load_run(run).load_network(), float32, "bfloat16", states)
    with pytest.raises(ParityError, match="bfloat16: ONNX Runtime on this machine cannot run it"):
        precision.judge(SURFACE, float32, brain, "bfloat16", states)


def test_the_judge_sees_another_network(run: Path, float32: bytes, tmp_path: Path) -> None:
    other = to_onnx(
        SURFACE, load_run(write_untrained_run(SURFACE, tmp_path / "other", seed=9)).load_network()
    )
    with pytest.raises(ParityError, match=r"float16: \d+\.\d+% of 8,\d+ choices"):
        precision.judge(SURFACE, float32, other, "float16", load_states(SURFACE, run))


def test_a_state_sample_comes_back_as_it_was_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    arrays = parity_cases(SURFACE, random_cases=40)
    (tmp_path / SAMPLE).write_bytes(pack_states(SURFACE, arrays))
    states = load_states(SURFACE, tmp_path)
    assert "scalarization" not in states
    for name, value in states.items():
        np.testing.assert_array_equal(value, arrays[name])
        assert value.dtype == arrays[name].dtype
    whole = (tmp_path / SAMPLE).read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"PK"):
        (tmp_path / SAMPLE).write_bytes(damage)
        with pytest.raises(RunError, match="fit again"):
            load_states(SURFACE, tmp_path)
