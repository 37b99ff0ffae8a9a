"""The measurement as Markdown, for ``benchmarks/RESULTS.md`` and for the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.cost.measure import Measurement, describe_subject
from benchmarks.cost.measure_gpu import GpuFigures
from benchmarks.cost.targets import Figure
from benchmarks.cost.through_triton import PARTS, Shares, ThroughTriton
from benchmarks.cost.timing import Estimate, ratio

ABSENT = "–"
BASELINES = ("A", "B", "eager", "compile")


def as_markdown(measured: Measurement) -> str:
    """Everything for a person: what is compared, what came out, what was reached and missed."""
    parts = [
        "## What a choice costs (P4, P5)\n",
        _machine(measured),
        _networks(measured),
        _latency(measured),
        _ratios(measured),
        "\n".join(f"- {line}" for line in target_lines(measured)) + "\n",
        _triton(measured, measured.triton) if measured.triton is not None else "",
        _gpu(measured.gpu) if measured.gpu is not None else "",
        "\n".join(f"- {remark}" for remark in measured.remarks) + "\n" if measured.remarks else "",
    ]
    return "\n".join(part for part in parts if part)


def target_lines(measured: Measurement) -> list[str]:
    """P4 and P5, one line each, misses said plainly."""
    lines = [target.text for target in measured.targets]
    if measured.settings.cpu and not lines:
        lines = ["P4: not measured, neither batch 1 nor 64 was among the batch sizes"]
    return lines + (measured.gpu.lines() if measured.gpu is not None else [])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _machine(measured: Measurement) -> str:
    machine, settings = measured.machine, measured.settings
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    timing = settings.timing
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    return (
        f"`{machine['command']}`\n\n"
        f"{machine['time']}, code {machine['code_version']}. {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gib']} GiB{gpu}; load average before: {machine['load_average']}. "
        f"Python {machine['python']}, {versions}. {settings.threads} thread(s) in every contestant, no "
        f"spinning; after a warm-up of {timing.warmup_s} s each, {timing.blocks} blocks in which every "
        f"contestant has a turn of {1e3 * timing.block_s:.0f} ms (at least one call) in an order drawn anew; "
        "brackets hold the 5th and the 95th percentile of all calls, or the 95 % bootstrap interval over "
        "the blocks.\n"
    )


def _networks(measured: Measurement) -> str:
    rows = []
    for subject in measured.subjects:
        about = describe_subject(subject)
        flops, config = about["flops_per_choice"], about["config"]
        rows.append(
            [
                subject.label,
                subject.origin,
                f"{config['history_encoder']}, {config['action_head']}",
                f"{about['parameters']:,}",
                *(f"{flops[kind] / 1e6:.2f}" for kind in ("A", "B", "served")),
            ]
        )
    head = ("network", "from", "parts", "parameters", "MFLOP A", "MFLOP B", "MFLOP served")
    surface = measured.subjects[0].surface
    return (
        f"Surface {surface.name}, {surface.num_actions} actions, {len(surface.objectives)} objectives; "
        "operations of one choice as each export arranges them:\n\n" + table(head, rows)
    )


def _latency(measured: Measurement) -> str:
    batches = sorted({figure.batch for figure in measured.figures})
    if not batches:
        return ""
    calls, rates = [], []
    for key, label in measured.labels.items():
        figures = [measured.figure(key, batch) for batch in batches]
        calls.append([label, *(_call_cell(figure) for figure in figures)])
        rates.append([label, *(ABSENT if f is None else f"{f.choices_per_s:,.0f}" for f in figures)])
    head = [f"batch {batch}" for batch in batches]
    return (
        _agreement(measured)
        + "\n\nMilliseconds per call, median and percentiles:\n\n"
        + table(["contestant", *head], calls)
        + "\nChoices per second, one call after the other:\n\n"
        + table(["contestant", *head], rates)
    )


def _agreement(measured: Measurement) -> str:
    exact = {key: item for key, item in measured.agreement.items() if not key.startswith("file")}
    worst = max((found.difference for found in exact.values()), default=0.0)
    cases = max((found.cases for found in exact.values()), default=0)
    same = min((found.same_action for found in exact.values()), default=1.0)
    lines = [
        f"Every contestant makes its network's own choice: on {cases} random and edge cases values "
        f"differ from torch's by at most {worst:.1e}, at least {100 * same:.4g} % of the actions agree."
    ]
    lines += [
        f"{measured.labels[key]}: {item.difference:.1e}, {100 * item.same_action:.4g} %."
        for key, item in measured.agreement.items()
        if key not in exact
    ]
    return " ".join(lines)


def _call_cell(figure: Figure | None) -> str:
    if figure is None:
        return ABSENT
    times = figure.times
    return f"{_ms(times.median_s)} [{_ms(times.low_s)}, {_ms(times.high_s)}]"


def _ratios(measured: Measurement) -> str:
    batches = sorted({figure.batch for figure in measured.figures})
    rows = []
    ours = {target.contestant: target.label for target in measured.targets}
    for key, label in {**{subject.key: subject.label for subject in measured.subjects}, **ours}.items():
        for baseline in BASELINES:
            cells = []
            for batch in batches:
                of, to = measured.figure(baseline, batch), measured.figure(key, batch)
                cells.append(ABSENT if of is None or to is None else _ratio(ratio(of.times, to.times)))
            if any(cell != ABSENT for cell in cells):
                rows.append([f"{label} against {measured.labels[baseline]}", *cells])
    if not rows:
        return ""
    return "How many times cheaper, with its interval:\n\n" + table(
        ["", *(f"batch {batch}" for batch in batches)], rows
    )


def _ratio(found: Estimate) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _triton(measured: Measurement, found: ThroughTriton) -> str:
    labels = {subject.key: subject.label for subject in measured.subjects}
    head = ["ms", "batch", "p50", "in the server", *PARTS]
    rows = [
        [
            labels[item.subject],
            str(item.batch),
            _ms(item.median_s),
            _ms(item.server_s),
            *(_backend(item) if part == "python backend" else _ms(item.parts_s[part]) for part in PARTS),
        ]
        for item in found.shares
    ]
    load = [
        [
            labels[item.subject],
            str(item.in_flight),
            f"{item.choices_per_s:,.0f}",
            f"{item.effective_batch:.2f}",
            _ms(item.median_s),
            _ms(item.high_s),
        ]
        for item in found.concurrency
    ]
    return (
        "Through the real tritonserver (Python backend, one gRPC client on the same cores, one request at a "
        "time). p50 as the client sees it; the other columns are means of the median turn. *In the server* "
        "is queue and compute; *session* the same ONNX file in this process in the same turns, *python "
        "backend* what Triton's compute infer takes beyond it:\n\n"
        + table(head, rows)
        + "\nClosed loop, requests of batch 1 always in flight, client on the same cores:\n\n"
        + table(["", "in flight", "choices/s", "rows per execution", "p50 ms", "p95 ms"], load)
    )


def _backend(item: Shares) -> str:
    return f"{_ms(item.backend.value)} [{_ms(item.backend.low)}, {_ms(item.backend.high)}]"


def _gpu(found: GpuFigures) -> str:
    peaks = ", ".join(f"{name} {value / 1e12:.3g} TFLOP/s" for name, value in found.peaks.flops_per_s.items())
    rows = [
        [
            found.labels[f.contestant],
            str(f.batch),
            _ms(f.call.median_s),
            _ms(f.device_s),
            f"{f.batch / f.device_s:,.0f}",
            f"{f.flops / 1e9:.3g}",
            f"{f.least_bytes / 1e6:.3g}",
            f"{f.operand_bytes / 1e6:.3g}",
            f"{f.flops / f.device_s / 1e12:.3g}",
            f"{100 * f.share:.1f} %",
        ]
        for f in found.figures
    ]
    head = ("", "batch", "call ms", "device ms", "choices/s", "GFLOP", "MB least", "MB operands")
    return (
        f"On {found.peaks.device} (ceilings {found.peaks.source}: {peaks}, "
        f"{found.peaks.bytes_per_s / 1e12:.3g} TB/s). *call*: inputs from the host, run, choice on the host; "
        "*device*: one run among queued ones; *share*: of max(operations / ceiling, least bytes / "
        "ceiling):\n\n" + table([*head, "TFLOP/s", "share of roofline"], rows)
    )
