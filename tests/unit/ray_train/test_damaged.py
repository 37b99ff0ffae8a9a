"""Files that are Parquet, YAML or JSON and yet not what they should be: refused in a line, or read aright."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.fuzz import honest
from ray_train.decisions import DECISION, Reader, Source, open_decisions
from ray_train.experiment_design import read_design
from ray_train.experiment_sums import PAYLOAD
from ray_train.logs import LogFiles, discover_files
from ray_train.planning import examine
from ray_train.reading import file_units, list_units, read_slices
from ray_train.sample_ratio import sample_ratio
from ray_train.summary import print_summary
from tests.support.surfaces import small_surface
from tests.unit.ray_train.test_experiment import RULES
from triton_models.doors import new_parser, run_door
from triton_models.errors import LogError, RunError, SurfaceError
from triton_models.runs import load_run
from triton_models.surface import Surface
from triton_models.yaml_files import load_yaml

SURFACE = small_surface()


def changed(table: pa.Table, name: str, array: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, array)


def log_files(table: pa.Table, folder: Path) -> LogFiles:
    pq.write_table(table, folder / "a.parquet")
    return discover_files(folder)


def exploration() -> pa.Table:
    return honest.exploration_log(random.Random(0), SURFACE)


def decisions() -> pa.Table:
    return honest.decisions(random.Random(0), SURFACE)


def transport_rows(source: Source) -> pa.Table:
    reader = Reader(
        surface=SURFACE,
        decisions=source,
        events=source,
        payload=PAYLOAD,
        payload_if_explored=False,
        buckets=4,
    )
    rows = pa.concat_tables([t for n in range(len(source.units)) for t in reader.decision_rows(n)])
    return rows.filter(pa.array(np.asarray(rows.column("kind")) == DECISION))


def test_text_that_is_no_text(tmp_path: Path) -> None:
    table = exploration()
    texts = [b"\xff\xfe", *(name.encode() for name in table.column("user_id").to_pylist()[1:])]
    files = log_files(changed(table, "user_id", pa.array(texts, pa.binary()).view(pa.string())), tmp_path)
    with pytest.raises(LogError, match=r"a\.parquet: cannot be read .*UTF8"):
        examine(SURFACE, files, list_units(SURFACE, files), now=honest.NOW)


def test_a_row_group_that_holds_fewer_rows_than_it_says(tmp_path: Path) -> None:
    files = log_files(exploration(), tmp_path)
    (unit,) = list_units(SURFACE, files)
    with pytest.raises(LogError, match="holds 40 of the 41 rows"):
        list(read_slices(files, replace(unit, rows=41), ["request_id"]))


def test_only_the_chunk_of_the_timestamp_is_looked_at(tmp_path: Path) -> None:
    """Arrow 25 aborts over damaged size statistics of a chunk (fuzz --target logs, seed 1, case 1201)."""
    files = log_files(exploration(), tmp_path)
    with files.open(files.paths[0]) as file:
        metadata = file.metadata
    asked = []

    class Group:
        num_columns, num_rows = metadata.num_columns, metadata.num_rows
        total_byte_size = 1

        def column(self, number: int) -> Any:
            asked.append(number)
            return metadata.row_group(0).column(number)

    class Metadata:
        schema, num_columns, num_row_groups = metadata.schema, metadata.num_columns, 1

        def row_group(self, number: int) -> Group:
            return Group()

    (unit,) = file_units("a.parquet", Metadata())
    assert asked == [1]
    assert (unit.first, unit.rows) == (honest.START, 40)


def test_cohorts_that_look_like_markup_are_shown(tmp_path: Path) -> None:
    table = exploration()
    files = log_files(changed(table, "cohort", pa.array(["[/red]"] * table.num_rows)), tmp_path)
    report = examine(SURFACE, files, list_units(SURFACE, files), now=honest.NOW)
    console = Console(record=True, width=200)
    print_summary(console, SURFACE, files, report)
    assert "[/red] 100.0 %" in console.export_text()


def test_decisions_whose_yes_and_no_are_numbers(tmp_path: Path) -> None:
    table = decisions()
    pq.write_table(table, tmp_path / "bool.parquet")
    pq.write_table(
        changed(table, "explored", table.column("explored").cast(pa.int8())), tmp_path / "int.parquet"
    )
    found = []
    for name in ("bool", "int"):
        _, source = open_decisions(str(tmp_path / f"{name}.parquet"), SURFACE)
        design = read_design(SURFACE, source, RULES, "static")
        found.append((transport_rows(source).column("explored").to_pylist(), design.explored, design.arms))
    assert found[0] == found[1]
    assert 0 < found[0][1] < table.num_rows


def test_a_policy_version_that_is_no_whole_number(tmp_path: Path) -> None:
    table = decisions()
    half = pa.array([1.5] * table.num_rows)
    pq.write_table(changed(table, "policy_version", half), tmp_path / "d.parquet")
    _, source = open_decisions(str(tmp_path), SURFACE)
    with pytest.raises(LogError, match=r"d\.parquet: cannot be read"):
        transport_rows(source)
    with pytest.raises(LogError, match=r"d\.parquet: cannot be read"):
        read_design(SURFACE, source, RULES, "static")


def test_decisions_before_the_year_1_are_none(tmp_path: Path) -> None:
    table = decisions()
    numbers = np.array(table.column("timestamp").cast(pa.int64()))
    numbers[3] = -(10**17)
    kind = table.schema.field("timestamp").type
    pq.write_table(changed(table, "timestamp", pa.array(numbers).cast(kind)), tmp_path / "d.parquet")
    _, source = open_decisions(str(tmp_path), SURFACE)
    assert transport_rows(source).num_rows == table.num_rows - 1
    assert read_design(SURFACE, source, RULES, "static").window[0] >= honest.START


def test_propensities_next_to_nothing_are_counted_without_a_warning(tmp_path: Path) -> None:
    table = exploration()
    tiny = [1e-300, 5e-324, *table.column("propensity").to_pylist()[2:]]
    files = log_files(changed(table, "propensity", pa.array(tiny)), tmp_path)
    report = examine(SURFACE, files, list_units(SURFACE, files), now=honest.NOW)
    assert report.good == table.num_rows
    sample_ratio(report.totals)  # warnings are errors here


def test_a_surface_with_more_points_than_a_float_can_say() -> None:
    data = SURFACE.to_dict()
    data["controlled"][0]["points"] = 10**400
    with pytest.raises(SurfaceError, match="grid"):
        Surface.from_dict(data)


def test_an_error_that_quotes_two_lines_is_told_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: object) -> None:
        raise LogError("a.parquet: the surface does not know weight_\nx")

    parser = new_parser("door", "a door")
    parser.set_defaults(command=command)
    assert run_door(parser, []) == 2
    assert capsys.readouterr().err == "door: error: a.parquet: the surface does not know weight_ x\n"


@pytest.mark.parametrize("text", ['!!int ""', "!!bool x", "!!timestamp x", "&a [*a", "!!float x", "{[]: 1}"])
def test_yaml_that_its_library_stumbles_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(f"name: {text}\n")
    with pytest.raises(SurfaceError, match=r"s\.yaml: not valid YAML"):
        load_yaml(tmp_path / "s.yaml")


def test_a_manifest_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"run\.json: cannot be read"):
        load_run(tmp_path)
