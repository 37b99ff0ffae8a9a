"""``python -m triton_models export``: a run → a new version of ``value_network``."""

from __future__ import annotations

import argparse
from pathlib import Path

from triton_models.commands.options import Subparsers, add_repository, positive
from triton_models.config_pbtxt import BACKENDS, TENSORRT, GpuOptions
from triton_models.doors import say
from triton_models.errors import PutsError
from triton_models.parity import PRECISIONS


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="write a run as a new version of value_network",
        description="Export a run; refused unless the exported model equals the torch network. The new "
        "version is served by whatever loads the repository next; rollout brings it into a running server.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder written by python -m ray_train fit")
    add_repository(parser)
    parser.add_argument(
        "--backend", choices=BACKENDS, default="python", help="python: embedded; onnxruntime: GPU container"
    )
    parser.add_argument(
        "--keep", type=positive, default=3, metavar="N", help="newest versions kept; the served one always is"
    )
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads per instance")
    parser.add_argument(
        "--instances", type=positive, default=1, metavar="N", help="instances (per GPU, or processes)"
    )
    parser.add_argument(
        "--max-batch-size", type=positive, default=64, metavar="N", help="largest batch that is formed"
    )
    parser.add_argument(
        "--queue-delay-us", type=int, default=0, metavar="US", help="wait of the batcher for more requests"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="what the network calculates in; another than float32 must run here and choose alike",
    )
    gpu = parser.add_argument_group("newer servers, --backend onnxruntime only")
    gpu.add_argument(
        "--tensorrt",
        choices=TENSORRT,
        default="off",
        help="TensorRT engines, not CUDA",
    )
    gpu.add_argument(
        "--engine-cache", metavar="DIR", default=GpuOptions.engine_cache, help="in the container"
    )
    gpu.add_argument(
        "--queue-timeout-ms", type=positive, metavar="MS", help="reject what waited so long (not on 24.10)"
    )
    gpu.add_argument(
        "--priority-levels", type=int, default=0, metavar="N", help="levels of priority, for batch scoring"
    )
    parser.add_argument(
        "--hold", action="store_true", help="only put it beside; what is served stays, also after a restart"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace a model of another control surface; export a run whose verdict is negative",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Export a run as the next version of ``value_network``."""
    say(f"exporting {options.run} (torch → ONNX, then parity against torch) …")
    try:
        from triton_models.export import export_run
    except ImportError as error:
        raise PutsError(f"export needs {error.name}; pip install 'prl-puts[train]'") from error
    report = export_run(
        options.run,
        options.repository,
        backend=options.backend,
        keep=options.keep,
        intra_op_threads=options.threads,
        force=options.force,
        hold=options.hold,
        precision=options.precision,
        max_batch_size=options.max_batch_size,
        instance_count=options.instances,
        queue_delay_us=options.queue_delay_us,
        gpu=GpuOptions(
            tensorrt=options.tensorrt,
            engine_cache=options.engine_cache,
            queue_timeout_ms=options.queue_timeout_ms,
            priority_levels=options.priority_levels,
        ),
    )
    say(
        f"parity: largest difference from torch {report.parity:.2g} over {report.cases} cases; "
        "no choice costs more than that"
    )
    if report.judgement is not None:
        say(
            f"{options.precision}: {report.judgement.agreement:.3%} of {report.judgement.choices:,} choices "
            "on logged states agree with float32, "
            f"values differ by up to {report.judgement.difference:.2g}"
        )
    say(f"run {report.run_id}, surface {report.fingerprint[:12]}, backend {report.backend}")
    say(f"wrote {report.folder} (version {report.version}, {report.num_bytes / 1024:.0f} KiB)")
    how = f"python -m triton_models rollout URL --repository {options.repository}"
    if report.served == report.version:
        say(f"version {report.version} is served from the next start on; into a running server: {how}")
    else:
        say(f"version {report.served} is still the served one; {how} serves version {report.version}")
    return 0
