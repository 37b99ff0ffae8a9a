"""Files that our loaders read, spoilt: each has to be read, or refused with an error of ours that says why.

What was read is used as well, for what is lazy shows only then; and where something is known of what must
come out, that is looked at: a surface that is written again is the same, a spool file that was cut short
gives the rows before the cut, and a segment that could not be made leaves nothing behind.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.fuzz import honest
from benchmarks.fuzz.cases import Verdict, fault
from benchmarks.fuzz.log_files import MARKS, odd_cell, odd_text, other_columns, other_kind
from benchmarks.fuzz.mutate import altered, spoilt
from ray_train.attribution import Attribution
from ray_train.decisions import Reader, Source, open_decisions, open_events
from ray_train.experiment_design import read_design
from ray_train.experiment_sums import PAYLOAD
from serve.policy import PolicyBody, parse
from serve.policy_cli import read_policy_file
from serve.segments import write_segment
from triton_models.errors import PutsError
from triton_models.frontier import load_frontier, parse_frontier
from triton_models.runs import load_run
from triton_models.surface import Surface, load_surface

YAML_WORDS = (
    *(
        b'!!int ""',
        b"!!float x",
        b"!!bool x",
        b"!!timestamp x",
        b"!!binary x",
        b"!!python/object:os.system x",
    ),
    *(b"&a ", b"*a", b"<<: ", b"? ", b"- ", b"{", b"}", b"[", b"]", b": ", b"\n", b"#", b"|\n", b"---\n"),
    *(b".nan", b".inf", b"1_0", b"0x1", b"0o8", b"1:1:1", b"2001-99-99", b"~", b"\t", b"%YAML 9.9\n"),
)
JSON_WORDS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 400,
    b"[" * 2000,
    b"\\ud800",
    b'"',
    b"{",
    b"}",
    b",",
    b"null",
)


class LoaderCases:
    """Cases of every kind of file."""

    def __init__(self, surface: Surface) -> None:
        first = random.Random(0)
        self._surface = surface
        self._decisions = honest.decisions(first, surface)
        self._decision_files = [honest.parquet(first, self._decisions) for _ in range(6)]
        self._events = honest.events(first, surface)
        self._event_files = [honest.parquet(first, self._events) for _ in range(4)]
        self._spool = honest.stream(self._decisions)
        self._kinds: tuple[Callable[[random.Random, Path], Verdict], ...] = (
            *(self._surface_file, self._policy_file, self._frontier_file, self._run_folder),
            *(self._decision_log, self._event_log, self._spool_file),
        )

    def case(self, pick: random.Random) -> Verdict:
        """One file of some kind."""
        with tempfile.TemporaryDirectory(prefix="puts-fuzz-") as folder:
            return pick.choice(self._kinds)(pick, Path(folder))

    # ------------------------------------------------------------------ YAML and JSON

    def _surface_file(self, pick: random.Random, folder: Path) -> Verdict:
        file = folder / "surface.yaml"
        file.write_bytes(_text(pick, self._surface.to_dict(), as_yaml=True))

        def use() -> str | None:
            found = load_surface(file)
            file.write_text(found.to_yaml(), encoding="utf-8")
            return None if load_surface(file).fingerprint == found.fingerprint else "is another one on disk"

        return _tried("surface.yaml", use)

    def _policy_file(self, pick: random.Random, folder: Path) -> Verdict:
        file = folder / "policy.yaml"
        file.write_bytes(_text(pick, honest.policy(), as_yaml=True))

        def use() -> None:
            body = parse(PolicyBody, read_policy_file(file), source=str(file))
            body.check_surface(self._surface)
            body.shares(1e9)

        return _tried("policy.yaml", use)

    def _frontier_file(self, pick: random.Random, folder: Path) -> Verdict:
        file = folder / "frontier.json"
        file.write_bytes(_text(pick, honest.frontier(self._surface)))

        def use() -> str | None:
            found = load_frontier(file)
            again = parse_frontier(json.loads(json.dumps(found.to_dict(), allow_nan=False)), source="again")
            found.surface_object.require_same(self._surface, this="the frontier", that="the sidecar")
            return None if again.fingerprint == found.fingerprint else "is another one when written again"

        return _tried("frontier.json", use)

    def _run_folder(self, pick: random.Random, folder: Path) -> Verdict:
        (folder / "run.json").write_bytes(_text(pick, honest.manifest(self._surface)))

        def use() -> None:
            load_run(folder).require_passed()

        return _tried("run.json", use)

    # ------------------------------------------------------------------ decisions and events

    def _decision_log(self, pick: random.Random, folder: Path) -> Verdict:
        (folder / "d.parquet").write_bytes(_table_file(pick, self._decision_files, self._decisions))
        rules = Attribution(as_of=honest.NOW, window=timedelta(hours=1))

        def use() -> None:
            surface, source = open_decisions(str(folder), pick.choice([self._surface, None]))
            reader = self._reader(surface, source, source)
            for number in range(len(source.units)):
                list(reader.decision_rows(number))
            read_design(surface, source, rules, "static")

        return _tried("decisions", use)

    def _event_log(self, pick: random.Random, folder: Path) -> Verdict:
        (folder / "e.parquet").write_bytes(_table_file(pick, self._event_files, self._events))

        def use() -> None:
            source = open_events(str(folder))
            reader = self._reader(self._surface, source, source)
            for number in range(len(source.units)):
                list(reader.event_rows(number))

        return _tried("events", use)

    def _reader(self, surface: Surface, decisions: Source, events: Source) -> Reader:
        return Reader(
            surface=surface,
            decisions=decisions,
            events=events,
            payload=PAYLOAD,
            payload_if_explored=False,
            buckets=4,
        )

    def _spool_file(self, pick: random.Random, folder: Path) -> Verdict:
        spool, part = folder / "s.arrows", folder / "s.parquet.part"
        cut = pick.random() < 0.4
        data = self._spool[: pick.randrange(len(self._spool) + 1)] if cut else spoilt(pick, self._spool)
        spool.write_bytes(data)
        kind = "spool: cut off" if cut else "spool"
        try:
            segment = write_segment(spool, part)
        except (OSError, ValueError, pa.ArrowException) as error:  # the shipper's: the file is kept
            outcome, wrong = "kept", None if not part.exists() else f"half a segment is left after {error!r}"
        except Exception as error:
            outcome, wrong = "traceback", fault(error)
        else:
            outcome, wrong = "segment", self._segment_fault(part, segment.rows, cut)
        return Verdict(kind=kind, outcome=outcome, finding=wrong and f"{kind}: {wrong}")

    def _segment_fault(self, part: Path, rows: int, cut: bool) -> str | None:
        if rows == 0:
            return "an empty segment" if part.exists() else None
        written = pq.read_metadata(part).num_rows
        if written != rows:
            return f"the segment holds {written} rows, not {rows}"
        if cut and pq.read_table(part).to_pylist() != self._decisions.slice(0, rows).to_pylist():
            return "the rows before the cut are other ones"
        return None


def _text(pick: random.Random, data: Any, *, as_yaml: bool = False) -> bytes:
    """A file of text: odd values in it, or spoilt in its bytes, or both."""
    way = pick.random()
    if 0.05 < way < 0.6:
        data = altered(pick, data)
    text = yaml.safe_dump(data, sort_keys=False) if as_yaml else json.dumps(data)
    whole = text.encode("utf-8", "surrogatepass")
    return spoilt(pick, whole, YAML_WORDS if as_yaml else JSON_WORDS) if way > 0.5 else whole


def _table_file(pick: random.Random, files: list[bytes], table: pa.Table) -> bytes:
    """A Parquet file with its bytes, a cell or a column spoilt."""
    if pick.random() < 0.5:
        return spoilt(pick, pick.choice(files), MARKS)
    spoil = pick.choice([odd_cell, odd_text, other_kind, other_columns])
    try:
        return honest.parquet(pick, spoil(pick, table))
    except (pa.ArrowException, ValueError, TypeError, OverflowError):  # Arrow itself refuses to make it
        return pick.choice(files)


def _tried(kind: str, use: Callable[[], str | None]) -> Verdict:
    """Load and use; whatever is raised has to be ours."""
    try:
        wrong = use()
    except PutsError as error:
        wrong = fault(error)
        return Verdict(kind=kind, outcome="refused", finding=wrong and f"{kind}: {wrong}")
    except Exception as error:
        return Verdict(kind=kind, outcome="traceback", finding=f"{kind}: {fault(error)}")
    return Verdict(kind=kind, outcome="read", finding=wrong and f"{kind}: {wrong}")
