"""Timing, targets, tables and the command's one line on bad input."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.cost.contestants import Agreement, torch_threads
from benchmarks.cost.counting import Work
from benchmarks.cost.measure import CostSettings, Measurement
from benchmarks.cost.measure_gpu import measure_gpu
from benchmarks.cost.networks import EXAMPLE_SURFACE, Subject, load_subjects, untrained_network
from benchmarks.cost.page import render_page
from benchmarks.cost.report import as_markdown, table, target_lines
from benchmarks.cost.roofline import Peaks, datasheet_peaks
from benchmarks.cost.targets import Figure, p4_targets
from benchmarks.cost.through_triton import PARTS, Shares, ThroughTriton, split_parts
from benchmarks.cost.timing import Estimate, Times, TimingSettings, difference, interleaved, ratio
from benchmarks.cost.under_load import Concurrency
from ray_train.distil_settings import student_config
from tests.support.runs import write_untrained_run
from triton_models.errors import ConfigurationError, SurfaceMismatchError
from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface

QUICK = TimingSettings(blocks=4, block_s=0.001, warmup_s=0.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the measurement runs; two threads that wait for each other on a busy machine take for ever."""
    with torch_threads(1):
        yield


def times(milliseconds: float, *, spread: float = 0.0, blocks: int = 10) -> Times:
    medians = tuple(1e-3 * (milliseconds + spread * (i - (blocks - 1) / 2)) for i in range(blocks))
    return Times(1e-3 * milliseconds, min(medians), max(medians), 10 * blocks, medians, medians)


# ------------------------------------------------------------------------------------------ timing


def test_a_slower_call_takes_longer_and_every_block_has_everybody() -> None:
    turns: list[str] = []
    found = interleaved(
        {"quick": lambda: None, "slow": lambda: time.sleep(0.003)},
        QUICK,
        at_end=lambda key, calls: turns.append(key),
    )
    assert found["slow"].median_s >= 0.003 > found["quick"].median_s
    assert [len(item.block_medians_s) for item in found.values()] == [4, 4]
    assert [set(turns[i : i + 2]) for i in range(0, 8, 2)] == [{"quick", "slow"}] * 4
    # 1 ms holds no call of 3 ms: one call a turn all the same.
    assert found["slow"].calls == 4
    assert ratio(found["slow"], found["quick"]).value > 10


def test_hooks_see_exactly_the_counted_calls() -> None:
    made = 0
    seen: list[int] = []

    def call() -> None:
        nonlocal made
        made += 1

    def at_start(key: str) -> None:
        seen.append(made)

    def at_end(key: str, calls: int) -> None:
        assert made - seen[-1] == calls

    interleaved({"x": call}, QUICK, at_start=at_start, at_end=at_end)
    assert len(seen) == 4


def test_ratio_and_difference_by_hand() -> None:
    steady = ratio(times(6.0), times(2.0))
    assert (steady.value, steady.low, steady.high) == pytest.approx((3.0, 3.0, 3.0))
    noisy = ratio(times(6.0, spread=0.2), times(2.0))
    assert noisy.value == pytest.approx(3.0) and noisy.low < 3.0 < noisy.high
    # Drift that hits both alike leaves no trace in the difference.
    drift = np.arange(8.0)
    assert difference(list(drift + 2.0), list(drift)) == Estimate(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="same blocks"):
        ratio(times(1.0, blocks=3), times(1.0, blocks=4))


# ------------------------------------------------------------------------------------------ targets


def figures(**milliseconds: float) -> list[Figure]:
    return [Figure(contestant=key, batch=1, times=times(value)) for key, value in milliseconds.items()]


def test_targets_say_what_was_missed() -> None:
    found = p4_targets(figures(A=30.0, B=2.0, ours=1.0), {"ours": "ours"})
    assert [target.text for target in found] == [
        "P4, batch 1: ours vs A: 30.0 times [30.0, 30.0], target >= 20: reached",
        "P4, batch 1: ours vs B: 2.0 times [2.0, 2.0], target >= 3: MISSED",
    ]


def test_a_target_inside_the_interval_is_not_simply_reached() -> None:
    naive = Figure(contestant="A", batch=64, times=times(21.0, spread=0.6))
    ours = Figure(contestant="ours", batch=64, times=times(1.0))
    (target,) = p4_targets([naive, ours], {"ours": "ours"})
    assert target.ratio.low < 20 < target.ratio.value
    assert target.verdict == "reached, but the interval holds the target"


def test_cost_per_choice() -> None:
    figure = Figure(contestant="x", batch=64, times=times(6.4))
    assert figure.us_per_choice == pytest.approx(100.0)
    assert figure.choices_per_s == pytest.approx(10_000.0)


def test_parts_of_a_call_add_up() -> None:
    mean = {
        "build request": 1.0, "call": 10.0, "read answer": 0.5,
        "queue": 1.0, "compute input": 0.5, "compute infer": 5.0, "compute output": 0.5,
    }  # fmt: skip
    parts = split_parts(mean, backend_s=2.0)
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == pytest.approx(11.5)
    assert (parts["session"], parts["python backend"], parts["transport"]) == (3.0, 2.0, 3.0)


# ------------------------------------------------------------------------------------------ roofline


def test_the_roofline_is_the_slower_of_two_ceilings() -> None:
    peaks = Peaks(device="d", flops_per_s={"float32": 10.0}, bytes_per_s=5.0, source="given")
    assert peaks.least_time_s(Work(100.0, 10.0, 99.0), "float32") == 10.0
    assert peaks.least_time_s(Work(100.0, 100.0, 99.0), "float32") == 20.0


def test_datasheet_by_name() -> None:
    found = datasheet_peaks("NVIDIA H100 80GB HBM3")
    assert found is not None and found.bytes_per_s == 3.35e12
    other = datasheet_peaks("NVIDIA A100-SXM4-80GB")
    assert other is not None and other.flops_per_s["float32"] == 19.5e12
    assert datasheet_peaks("Some card 3000") is None


def test_the_device_path_measures_on_the_cpu(surface: Surface) -> None:
    subject = small_subject(surface)
    found = measure_gpu(
        (subject,), "cpu", "this CPU", batches=(1, 4), timing=QUICK, modes=("eager",), size=64, copy_mb=1
    )
    assert found.peaks.source == "measured in this run"
    assert {(f.contestant, f.batch) for f in found.figures} == {
        (key, batch) for key in found.labels for batch in (1, 4)
    }
    assert all(f.device_s > 0 and f.share > 0 and f.call.median_s > 0 for f in found.figures)
    best = found.best()
    assert best is not None and not best.naive
    assert [line[:4] for line in found.lines()] == ["P5: ", "P5: "]
    given = measure_gpu(
        (subject,),
        "cpu",
        "this CPU",
        batches=(1,),
        timing=QUICK,
        modes=("eager",),
        peak_flops=1e9,
        peak_bytes=1e9,
    )
    assert given.peaks.source == "given" and given.peaks.bytes_per_s == 1e9
    best = found.best()
    assert best is not None
    for share, verdict in ((0.49, "MISSED"), (0.5, "reached"), (1.2, "below what the device does")):
        changed = replace(found, figures=(replace(best, share=share),))
        assert changed.lines()[0].endswith(verdict)


# ------------------------------------------------------------------------------------------ report


def small_subject(surface: Surface) -> Subject:
    network = untrained_network(surface, NetworkConfig(history_width=8, state_width=6))
    return Subject(key="ours", label="ours", origin="never fitted", surface=surface, network=network)


def measurement(surface: Surface, **changes: Any) -> Measurement:
    found = [
        *figures(A=30.0, B=2.0, ours=1.0),
        Figure(contestant="ours", batch=64, times=times(6.4)),
    ]
    shares = Shares(
        subject="ours",
        batch=1,
        calls=10,
        median_s=2e-3,
        in_process_s=1e-3,
        server_s=1.5e-3,
        backend=Estimate(-1e-5, -1e-4, 1e-4),
        parts_s={**dict.fromkeys(PARTS, 2.5e-4), "python backend": -1e-5},
    )
    load = Concurrency(
        subject="ours", batch=1, in_flight=16, choices_per_s=1000.0, effective_batch=3.5,
        median_s=0.01, high_s=0.02, requests=3000,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "machine": {
            "time": "2026-01-01T00:00:00+00:00", "command": "python -m benchmarks cost", "cores": 2,
            "cpu": "a <CPU>", "memory_gib": 8.0, "gpu": None, "load_average": 0.1, "python": "3.11",
            "code_version": "abc", "versions": {"torch": "2"},
        },
        "settings": CostSettings(),
        "subjects": (small_subject(surface),),
        "labels": {"A": "naive A", "B": "naive B", "ours": "ours, served ONNX"},
        "agreement": {"ours": Agreement(1e-7, 1.0, 90)},
        "figures": tuple(found),
        "targets": p4_targets(found, {"ours": "ours"}),
        "triton": ThroughTriton(shares=(shares,), concurrency=(load,)),
        "gpu": None,
        "remarks": ("no GPU here",),
    }  # fmt: skip
    return Measurement(**{**fields, **changes})


def test_the_table_holds_every_figure_and_what_is_missing(surface: Surface) -> None:
    text = as_markdown(measurement(surface))
    assert "| naive A | 30.0 [30.0, 30.0] | – |" in text
    assert "| ours, served ONNX | 1,000 | 10,000 |" in text
    assert "| ours against naive B | 2.00 [2.00, 2.00] | – |" in text
    assert "- P4, batch 1: ours vs B: 2.0 times [2.0, 2.0], target >= 3: MISSED" in text
    assert "-0.010 [-0.100, 0.100]" in text
    assert "| ours | 16 | 1,000 | 3.50 | 10.0 | 20.0 |" in text
    assert "at most 1.0e-07" in text and "- no GPU here" in text


def test_json_is_strict_and_holds_the_blocks(surface: Surface) -> None:
    data = json.loads(json.dumps(measurement(surface).as_json(), allow_nan=False))
    assert data["cpu"][0]["us_per_choice"] == pytest.approx(30_000.0)
    assert len(data["cpu"][0]["times"]["block_medians_s"]) == 10
    assert data["networks"][0]["config"]["history_width"] == 8
    assert data["targets"][1]["text"].endswith("MISSED")


def test_the_page_escapes_and_marks_what_was_missed(surface: Surface) -> None:
    page = render_page(measurement(surface))
    assert "a &lt;CPU&gt;" in page and "<CPU>" not in page
    assert page.count('class="missed"') == 1
    assert page.count("<svg") == 2
    assert "NaN" not in page and "nan" not in page.split("<script>")[0].lower().replace("tenant", "")


def test_the_page_has_a_picture_of_the_device(surface: Surface) -> None:
    subject = small_subject(surface)
    gpu = measure_gpu(
        (subject,), "cpu", "NVIDIA H200", batches=(1, 4), timing=QUICK, modes=("eager",), size=64, copy_mb=1
    )
    alone = measurement(surface, gpu=gpu, figures=(), labels={}, triton=None, targets=(), agreement={})
    page, text = render_page(alone), as_markdown(alone)
    assert page.count("<svg") == 1 and "On NVIDIA H200" in page
    assert "share of roofline" in text and text.count("P5: ") == 2


def test_no_target_among_the_batches_is_said(surface: Surface) -> None:
    empty = measurement(surface, targets=())
    assert target_lines(empty) == ["P4: not measured, neither batch 1 nor 64 was among the batch sizes"]


def test_table_escapes_bars() -> None:
    assert table(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"


# ------------------------------------------------------------------------------------------ what is measured


def test_without_a_run_an_untrained_network_and_a_cheap_one() -> None:
    ours, cheap = load_subjects(None, [])
    assert ours.surface.name == EXAMPLE_SURFACE["name"] and ours.surface.num_actions == 49
    assert (ours.network.config.action_head, cheap.network.config.action_head) == ("backbone", "grid")
    (only,) = load_subjects(None, [], config=json.dumps(student_config(NetworkConfig()).model_dump()))
    assert only.key == "ours"


def test_runs_must_answer_the_same_requests(surface: Surface, tmp_path: Path) -> None:
    one = write_untrained_run(surface, tmp_path / "one")
    same = write_untrained_run(surface, tmp_path / "same", seed=1)
    other_surface = Surface.from_dict({**surface.to_dict(), "name": "other"})
    other = write_untrained_run(other_surface, tmp_path / "other")
    assert [subject.key for subject in load_subjects(one, [same])] == ["ours", "also1"]
    with pytest.raises(SurfaceMismatchError, match="name"):
        load_subjects(one, [same, other])
    with pytest.raises(ConfigurationError, match="untrained"):
        load_subjects(one, [], surface=tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batches", "0"], "--batches must lie in 1..65536, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--turn-ms", "nan"], "--turn-ms must lie in"),
        (["--blocks", "0"], "--blocks must be at least 1"),
        (["--peak-tflops", "-1"], "--peak-tflops must be positive"),
        (["--also", "RUN"], "--also adds runs to a RUN"),
        (["--network", "{"], "--network: not JSON"),
        (["--network", '{"history_width": 0}'], "--network: history_width"),
        (["--network", "7"], "--network: "),
        (["--surface", "missing.yaml"], "missing.yaml"),
        (["--onnx", "no.onnx"], "no.onnx: cannot be read"),
        (["--onnx", __file__], "not an export for homefeed"),
        (["--tolerance", "0"], "--tolerance must be positive"),
        (["--no-cpu", "--no-gpu"], "nothing is left to measure"),
        (["no-run-here"], "no-run-here: holds no finished run"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["cost", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not out.exists()


def test_out_must_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["cost", "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
