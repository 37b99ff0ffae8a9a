"""Exploration logs, spoilt in their bytes, their values and their columns, through the door ``validate``.

Whatever a log holds, ``validate`` has to end with 0, or with 2 and one line; and its quarantine is there
whole, with the rows that its summary counts, or not at all.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzz import honest
from benchmarks.fuzz.cases import Verdict, fault
from benchmarks.fuzz.mutate import ODD_VALUES, spoilt
from ray_train.commands import validate
from triton_models.doors import EXIT_BAD_INPUT, new_parser, run_door
from triton_models.surface import Surface

VARIANTS = 12
"""Honest files whose bytes are spoilt."""

MARKS = [b"PAR1", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x15\x00", b"ARROW:schema"]

ODD_CELLS = (
    *ODD_VALUES,
    [1.0],
    [float("nan")] * 4,
    ["save"],
    [[1.0, 2.0, 3.0]],
    honest.NOW.replace(year=9000),
)

KINDS: tuple[pa.DataType, ...] = (
    *(pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()),
    *(pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()),
    *(pa.timestamp("s"), pa.timestamp("ms", tz="UTC"), pa.timestamp("ns", tz="Asia/Tokyo"), pa.date32()),
    *(pa.list_(pa.float64()), pa.large_list(pa.float16()), pa.list_(pa.large_string()), pa.null()),
)

Spoil = Callable[[random.Random, pa.Table], pa.Table]


class LogFilesCases:
    """Cases over one surface."""

    def __init__(self, surface: Surface) -> None:
        first = random.Random(0)
        self._surface = surface
        self._table = honest.exploration_log(first, surface)
        self._files = [honest.parquet(first, self._table) for _ in range(VARIANTS)]
        self._parser = new_parser("fuzz", "validate, many times")
        validate.add_parser(self._parser.add_subparsers(required=True))

    def case(self, pick: random.Random) -> Verdict:
        """One log, checked."""
        way = pick.random()
        if way < 0.05:
            kind, data = "log: honest", pick.choice(self._files)
        elif way < 0.5:
            kind, data = "log: bytes", spoilt(pick, pick.choice(self._files), MARKS)
        else:
            spoil = pick.choice([odd_cell, odd_cell, odd_text, other_kind, other_columns])
            kind, data = f"log: {spoil.__name__.replace('_', ' ')}", self._spoilt_values(pick, spoil)
        with tempfile.TemporaryDirectory(prefix="puts-fuzz-") as folder:
            return self._checked(kind, data, Path(folder), pick)

    def _spoilt_values(self, pick: random.Random, spoil: Spoil) -> bytes:
        for _ in range(20):  # Arrow itself refuses to make some of them
            try:
                table = self._table
                for _ in range(pick.choice([1, 1, 1, 3])):
                    table = spoil(pick, table)
                return honest.parquet(pick, table)
            except (pa.ArrowException, ValueError, TypeError, OverflowError):
                continue
        return pick.choice(self._files)

    def _checked(self, kind: str, data: bytes, folder: Path, pick: random.Random) -> Verdict:
        logs, surface, quarantine = folder / "logs", folder / "surface.yaml", folder / "bad"
        logs.mkdir()
        (logs / "a.parquet").write_bytes(data)
        if pick.random() < 0.1:
            (logs / "b.parquet").write_bytes(pick.choice(self._files))
        surface.write_text(self._surface.to_yaml(), encoding="utf-8")
        share = pick.choice(["0", "0.01", "1"])
        arguments = ["validate", str(logs), "--surface", str(surface), "--quarantine", str(quarantine)]
        arguments += ["--max-bad-share", share, "--now", honest.NOW.isoformat()]
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run_door(self._parser, arguments)
        except Exception as error:
            return Verdict(kind=kind, outcome="traceback", finding=f"{kind}: {fault(error)}")
        wrong = _badly_told(code, err.getvalue()) or _half_written(folder, quarantine)
        if kind == "log: honest" and code != 0 and not (logs / "b.parquet").exists():
            wrong = f"an honest log is refused: {err.getvalue()}"
        outcome = "accepted" if code == 0 else "refused"
        outcome += ", quarantine" if quarantine.exists() else ""
        return Verdict(kind=kind, outcome=outcome, finding=wrong and f"{kind}: {wrong}")


def _badly_told(code: int, said: str) -> str | None:
    lines = said.splitlines()
    if code == 0:
        return f"accepted, with an error: {said[:300]!r}" if lines else None
    told = code == EXIT_BAD_INPUT and len(lines) == 1 and ": error: " in said
    return None if told else f"code {code}, told in {len(lines)} lines: {said[:500]!r}"


def _half_written(folder: Path, quarantine: Path) -> str | None:
    left = [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]
    if left:
        return f"left behind: {', '.join(left)}"
    if not quarantine.exists():
        return None
    try:
        summary = json.loads((quarantine / "summary.json").read_text(encoding="utf-8"))
        rows = sum(pq.read_table(part).num_rows for part in quarantine.glob("*.parquet"))
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"the quarantine cannot be read: {' '.join(str(error).split())[:300]}"
    counted = sum(summary["bad_rows"].values())
    return None if rows == counted else f"the quarantine holds {rows} rows, its summary says {counted}"


# ------------------------------------------------------------------------------------ ways to spoil


def odd_cell(pick: random.Random, table: pa.Table) -> pa.Table:
    """Something odd in some rows of a column; the column may become one of another type for it."""
    at = pick.randrange(table.num_columns)
    values = table.column(at).to_pylist()
    odd: Any = pick.choice(ODD_CELLS)
    for _ in range(pick.choice([1, 1, 2, len(values)])):
        values[pick.randrange(len(values))] = odd
    field = table.schema.field(at)
    try:
        array = pa.array(values, type=field.type)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        array = pa.array(values)
    return table.set_column(at, field.name, array)


def odd_text(pick: random.Random, table: pa.Table) -> pa.Table:
    """Text that is none, or that means something to a terminal, in a column of text."""
    texts = [i for i, field in enumerate(table.schema) if pa.types.is_string(field.type)]
    at = pick.choice(texts)
    values = [None if v is None else v.encode() for v in table.column(at).to_pylist()]
    odd = pick.choice(
        [b"\xff", b"\xc3", b"\xed\xa0\x80", b"[/red]", b"[bold", b"\x1b[2J", b"a\nb", b"\x00", b""]
    )
    values[pick.randrange(len(values))] = odd
    array = pa.array(values, pa.binary()).view(pa.string())
    return table.set_column(at, table.column_names[at], array)


def other_kind(pick: random.Random, table: pa.Table) -> pa.Table:
    """A column in another type."""
    at = pick.randrange(table.num_columns)
    array = table.column(at).cast(pick.choice(KINDS), safe=pick.random() < 0.5)
    return table.set_column(at, table.column_names[at], array)


def other_columns(pick: random.Random, table: pa.Table) -> pa.Table:
    """A column less, twice, under another name, or one too many; or no rows at all."""
    at, way = pick.randrange(table.num_columns), pick.randrange(5)
    name = table.column_names[at]
    if way == 0:
        return table.remove_column(at)
    if way == 1:
        return table.append_column(name, table.column(at))
    if way == 2:
        other = pick.choice(["", "x", "reward_x", "weight_\n", "metric_x", "[/b]", name.upper(), "é"])
        return table.append_column(other, table.column(at))
    if way == 3:
        names = [*table.column_names]
        names[at] = pick.choice(["", "weight_x", names[pick.randrange(len(names))]])
        return table.rename_columns(names)
    return table.slice(0, pick.choice([0, 1]))
