"""``python -m ray_train join``: on a real Ray, against a join by dictionaries, and with a store too small."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_train.cli import main
from tests.support.logged_decisions import as_decisions, decisions_of, events_of, write_decisions, write_parts
from tests.support.logs import make_log
from tests.support.surfaces import small_surface, small_surface_data
from triton_models.surface import Surface

pytestmark = pytest.mark.usefixtures("ray_cluster")

SURFACE = small_surface()
AS_OF = "2026-02-01T00:00:00+00:00"  # the logs are of January 1st to 22nd
ROWS, PLAIN = 1500, 300


@pytest.fixture(scope="module")
def log() -> pa.Table:
    return make_log(SURFACE, ROWS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, log: pa.Table) -> Path:
    """Decisions, some of them logged twice, and events, some of them sent twice or of nobody."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "surface.yaml").write_text(SURFACE.to_yaml())
    write_decisions(SURFACE, decisions_of(SURFACE, log, plain=PLAIN), folder / "decisions")
    again = decisions_of(SURFACE, log).slice(0, 20)
    write_parts(as_decisions(SURFACE, again), folder / "decisions" / "date=2026-01-02", files=1)
    events = events_of(SURFACE, log)
    changed = [
        *(row | {"request_id": "nobody"} for row in events.slice(0, 7).to_pylist()),
        *(
            row | {"timestamp": row["timestamp"].replace(month=2), "event_id": f"late-{i}"}
            for i, row in enumerate(events.slice(0, 5).to_pylist())
        ),
        *(row | {"event": "scroll"} for row in events.slice(0, 3).to_pylist()),
    ]
    more = pa.concat_tables([events.slice(0, 30), pa.Table.from_pylist(changed, schema=events.schema)])
    write_parts(events, folder / "events" / "a")
    write_parts(more, folder / "events" / "b", files=2)
    return folder


def join(world: Path, out: Path | str, *arguments: str) -> int:
    named = {
        "--decisions": str(world / "decisions"),
        "--events": str(world / "events"),
        "--surface": str(world / "surface.yaml"),
        "--as-of": AS_OF,
        "--out": str(out),
        "--metric": "successful_session=measured",
    }
    named |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    return main(["join", *(part for pair in named.items() for part in pair)])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(folder).to_pylist()
    return sorted(rows, key=lambda row: str(row["request_id"]))


@pytest.fixture(scope="module")
def joined(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("joined") / "logs"
    assert join(world, out, "--bucket-mb", "0.05") == 0
    return out


def test_the_log_that_the_decisions_were_made_of_comes_back(joined: Path, log: pa.Table) -> None:
    found = rows_of(joined)
    wanted = sorted(log.slice(0, ROWS - PLAIN).to_pylist(), key=lambda row: str(row["request_id"]))
    assert [set(row) for row in found] == [set(row) for row in wanted]
    assert found == wanted
    assert len(list(joined.glob("*.parquet"))) > 3


def test_everything_is_counted_once(joined: Path, world: Path, log: pa.Table) -> None:
    summary = json.loads((joined / "_join.json").read_text())
    assert summary["decision_counts"] == {"in_the_log": ROWS - PLAIN, "not_explored": PLAIN, "duplicate": 20}
    counts = summary["event_counts"]
    events = events_of(SURFACE, log)
    explored = events_of(SURFACE, log.slice(0, ROWS - PLAIN))
    assert counts == {
        "counted": explored.num_rows,
        "not_explored": events.num_rows - explored.num_rows,
        "duplicate": 30,
        "unknown_request": 7,
        "after_window": 5,
        "other_name": 3,
    }
    assert sum(counts.values()) == pq.read_table(world / "events").num_rows


def test_validate_accepts_it(joined: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surface = str(world / "surface.yaml")
    assert main(["validate", str(joined), "--surface", surface, "--max-bad-share", "0"]) == 0
    assert f"{ROWS - PLAIN:,} rows, {ROWS - PLAIN:,} good" in capsys.readouterr().out


def test_the_same_bytes_again_and_by_uri(joined: Path, world: Path, tmp_path: Path) -> None:
    assert join(world, f"file://{tmp_path}/logs", "--bucket-mb", "0.05") == 0
    names = sorted(path.name for path in joined.iterdir())
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == names
    for name in names:
        assert (tmp_path / "logs" / name).read_bytes() == (joined / name).read_bytes(), name


def test_two_runs_give_what_one_gives(joined: Path, world: Path, tmp_path: Path) -> None:
    early = "2026-01-10T00:00:00+00:00"
    assert join(world, tmp_path / "a", "--as-of", early) == 0
    after = json.loads((tmp_path / "a" / "_join.json").read_text())["next_after"]
    assert join(world, tmp_path / "b", "--after", after) == 0
    both = rows_of(tmp_path / "a") + rows_of(tmp_path / "b")
    assert sorted(both, key=lambda row: str(row["request_id"])) == rows_of(joined)


def other_surface(world: Path) -> dict[str, str]:
    data = small_surface_data()
    data["controlled"][1]["maximum"] = 40
    (world / "other.yaml").write_text(Surface.from_dict(data).to_yaml())
    return {"--surface": str(world / "other.yaml")}


def cut_short(world: Path) -> dict[str, str]:
    folder = world / "cut"
    folder.mkdir()
    whole = next((world / "events" / "a").glob("*.parquet")).read_bytes()
    (folder / "part.parquet").write_bytes(whole[:-200])
    return {"--events": str(folder)}


def no_files(world: Path) -> dict[str, str]:
    (world / "empty").mkdir()
    return {"--events": str(world / "empty")}


BAD: list[tuple[Callable[[Path], dict[str, str]], str]] = [
    (other_surface, "differ in controlled[1].maximum (40.0 against 30.0)"),
    (cut_short, "cannot be read as Parquet"),
    (lambda world: {"--events": str(world / "decisions")}, "not events: missing event"),
    (lambda world: {"--decisions": str(world / "events")}, "not decisions"),
    (lambda world: {"--decisions": str(world / "nowhere")}, "no such file or folder"),
    (lambda world: {"--events": str(world / "surface.yaml")}, "cannot be read as Parquet"),
    (no_files, "holds no *.parquet file; expected events in Parquet"),
    (lambda world: {"--out": str(world)}, "exists already"),
    (lambda world: {"--as-of": "2026-01-01T00:00:01+00:00"}, "no explored decision is closed and complete"),
    (lambda world: {"--attribution-window": "soon"}, "no time span"),
    (lambda world: {"--metric": "dwell=any"}, "no metric 'dwell'"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], dict[str, str]],
    message: str,
) -> None:
    changed = {"--out": str(tmp_path / "logs")} | change(world)
    out = changed.pop("--out")
    assert join(world, out, *(part for pair in changed.items() for part in pair)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(200)
def test_an_input_several_times_the_object_store_spills(tmp_path: Path) -> None:
    """A Ray of its own with 80 MiB: the input is 1.8 times that, and each worker holds a fraction of it."""
    command = [sys.executable, "-m", "tests.support.small_store_join", str(tmp_path), "16000"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["rows"] == 16_000
    assert found["input_mib"] > 1.7 * found["store_mib"]
    assert found["spilled_mib"] > 30
    assert found["worker_mib"] < 600
