"""``python -m benchmarks cost``: what one choice costs, naive exports, ours, Triton, GPU in one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from triton_models.config_pbtxt import LARGEST_BATCH
from triton_models.doors import say
from triton_models.errors import BenchmarkError

GPU_MODES = ("eager", "compile", "graph", "compile + graph", "onnxruntime")
GPU_PRECISIONS = ("float32", "tf32", "bfloat16")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "cost",
        help="what one choice costs: naive exports, ours, torch, through Triton, on a GPU",
        description="Measure what one choice (state to weights) costs, all contestants in turns in one run: "
        "two naive exports (A, B), the served ONNX of a run and of further runs, eager and compiled torch; "
        "then through the real tritonserver, and on a GPU if there is one. Without a RUN an untrained "
        "network is measured, and one of cheap parts beside it: the cost depends on shapes only.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", type=Path, nargs="?", default=None, metavar="RUN", help="a fitted run")
    parser.add_argument(
        "--also",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN",
        help="runs to compare with",
    )
    parser.add_argument(
        "--onnx",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="further exports of RUN in other precisions, such as a version's model.onnx",
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.02, help="largest difference of a value that --onnx may have"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for cost.json, cost.md, cost.html")
    parser.add_argument("--surface", type=Path, default=None, metavar="FILE", help="of the untrained network")
    parser.add_argument("--network", default="", metavar="JSON", help="sizes of the untrained network")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every contestant")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 64, 512], metavar="N", help="batch sizes on the CPU"
    )
    parser.add_argument("--blocks", type=int, default=20, help="turns of every contestant")
    parser.add_argument("--turn-ms", type=float, default=60.0, help="length of a turn")
    parser.add_argument("--load-s", type=float, default=3.0, help="seconds of every load on Triton")
    parser.add_argument("--no-cpu", dest="cpu", action="store_false", help="leave the CPU and Triton out")
    parser.add_argument("--no-triton", dest="triton", action="store_false", help="leave the server out")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument(
        "--gpu", action=argparse.BooleanOptionalAction, default=None, help="measure on a GPU; if there is one"
    )
    parser.add_argument(
        "--gpu-batches",
        type=int,
        nargs="+",
        default=[1, 8, 64, 512, 4096, 16384],
        metavar="N",
        help="batch sizes on a GPU",
    )
    parser.add_argument(
        "--gpu-modes", nargs="+", default=list(GPU_MODES), choices=GPU_MODES, metavar="MODE", help="on a GPU"
    )
    parser.add_argument(
        "--gpu-precisions",
        nargs="+",
        default=list(GPU_PRECISIONS),
        choices=GPU_PRECISIONS,
        metavar="PRECISION",
        help="on a GPU",
    )
    parser.add_argument("--peak-tflops", type=float, default=None, help="of the GPU, instead of measured")
    parser.add_argument("--peak-tbytes", type=float, default=None, help="per second, instead of measured")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Measure, write the three files, and say what was reached."""
    _check(options)
    from benchmarks.cost.measure import CostSettings, measure_cost
    from benchmarks.cost.networks import load_subjects
    from benchmarks.cost.page import render_page
    from benchmarks.cost.report import as_markdown, target_lines
    from benchmarks.cost.timing import TimingSettings
    from triton_models.files import write_atomically, write_json

    settings = CostSettings(
        batches=tuple(dict.fromkeys(options.batches)),
        threads=options.threads,
        timing=TimingSettings(blocks=options.blocks, block_s=options.turn_ms / 1e3),
        files=tuple(options.onnx),
        file_tolerance=options.tolerance,
        triton=options.triton,
        load_s=options.load_s,
        cpu=options.cpu,
        compile=options.compile,
        gpu=options.gpu,
        gpu_batches=tuple(dict.fromkeys(options.gpu_batches)),
        gpu_modes=tuple(dict.fromkeys(options.gpu_modes)),
        gpu_precisions=tuple(dict.fromkeys(options.gpu_precisions)),
        peak_tflops=options.peak_tflops,
        peak_tbytes=options.peak_tbytes,
    )
    subjects = load_subjects(options.run, options.also, surface=options.surface, config=options.network)
    measured = measure_cost(subjects, settings, say=say)
    write_json(options.out / "cost.json", measured.as_json())
    text = as_markdown(measured)
    write_atomically(options.out / "cost.md", text)
    write_atomically(options.out / "cost.html", render_page(measured))
    say("\n" + text)
    for line in target_lines(measured):
        say(line)
    say(
        f"figures: {options.out / 'cost.json'}, table: {options.out / 'cost.md'}, "
        f"pictures: {options.out / 'cost.html'}"
    )


def _check(options: argparse.Namespace) -> None:
    """Refuse before anything heavy is loaded.

    Raises:
        BenchmarkError: a number that cannot be measured with, or an output folder that is a file.
    """
    for name in ("threads", "blocks"):
        if getattr(options, name) < 1:
            raise BenchmarkError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0.1 <= options.turn_ms <= 60_000:
        raise BenchmarkError(f"--turn-ms must lie in 0.1..60000, got {options.turn_ms:g}")
    for name in ("batches", "gpu_batches"):
        for size in getattr(options, name):
            if not 1 <= size <= LARGEST_BATCH:
                raise BenchmarkError(f"--{name.replace('_', '-')} must lie in 1..{LARGEST_BATCH}, got {size}")
    for name in ("tolerance", "load_s", "peak_tflops", "peak_tbytes"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise BenchmarkError(f"--{name.replace('_', '-')} must be positive, got {value:g}")
    if options.out.exists() and not options.out.is_dir():
        raise BenchmarkError(f"--out {options.out} is a file; name a folder")
