"""``simulate`` on the real Ray Data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import benchmarks
from benchmarks.cli import main
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.simulation import simulate
from benchmarks.feed.world import World, load_world
from ray_train.ingest import encode_table
from ray_train.logs import log_schema
from triton_models.errors import SimulationError
from triton_models.surface import Surface, load_surface

REQUESTS, FILE_ROWS = 5_000, 700

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
]


@pytest.fixture(scope="module")
def homefeed() -> Surface:
    return load_surface(Path(benchmarks.__file__).parent / "surfaces" / "homefeed.yaml")


@pytest.fixture(scope="module")
def world(homefeed: Surface) -> World:
    return World(WorldConfig(seed=11, requests=REQUESTS), homefeed)


@pytest.fixture(scope="module")
def logs(world: World, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("feed") / "logs"
    simulate(world, out, parallelism=3, file_rows=FILE_ROWS)
    return out


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def test_the_schema_is_exactly_the_exploration_log(logs: Path, homefeed: Surface) -> None:
    for path in logs.glob("*.parquet"):
        assert pq.read_schema(path).equals(log_schema(homefeed))


def test_rows_are_whole_and_files_are_in_the_order_of_time(logs: Path) -> None:
    table = read(logs)
    assert table.num_rows == REQUESTS
    assert len(set(table.column("request_id").to_pylist())) == REQUESTS
    stamps = table.column("timestamp").to_numpy()
    assert (np.diff(stamps) > np.timedelta64(0)).all()
    assert len(list(logs.glob("*.parquet"))) == -(-REQUESTS // FILE_ROWS)


def test_parallelism_and_file_size_do_not_change_the_rows(world: World, logs: Path, tmp_path: Path) -> None:
    simulate(world, tmp_path / "one", parallelism=1, file_rows=FILE_ROWS)
    simulate(world, tmp_path / "large", parallelism=2, file_rows=3_000)
    assert read(tmp_path / "one").equals(read(logs))
    assert read(tmp_path / "large").equals(read(logs))
    names = [sorted(path.name for path in folder.iterdir()) for folder in (logs, tmp_path / "one")]
    assert names[0] == names[1]


def test_training_reads_what_the_world_says(world: World, logs: Path, homefeed: Surface) -> None:
    arrays = encode_table(homefeed, read(logs))
    batch = world.requests(0, REQUESTS)
    for name, tensor in batch.state_tensors(homefeed).items():
        np.testing.assert_array_equal(arrays[name], tensor, err_msg=name)
    np.testing.assert_array_equal(arrays["action"], world.logged_actions(batch))
    np.testing.assert_allclose(arrays["propensity"], 1 / 49)
    counts, session = world.sample(batch)
    np.testing.assert_array_equal(arrays["rewards"], counts[:, :2] > 0)
    np.testing.assert_array_equal(arrays["metrics"], np.stack([session, counts[:, 4] > 0], axis=1))


def test_the_world_lies_beside_the_logs(world: World, logs: Path) -> None:
    again = load_world(logs)
    assert again.config == world.config
    batch, same = world.requests(REQUESTS, 30), again.requests(REQUESTS, 30)
    np.testing.assert_array_equal(world.expected_rewards(batch), again.expected_rewards(same))
    assert json.loads((logs / "_world.json").read_text())["config"]["seed"] == 11


def test_nothing_half_written(
    world: World, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SimulationError, match="not an empty folder"):
        simulate(world, logs)
    (tmp_path / "empty").mkdir()

    def fail(*_: object) -> None:
        raise SimulationError("stopped on purpose")

    monkeypatch.setattr("benchmarks.feed.simulation._number_files", fail)
    with pytest.raises(SimulationError, match="on purpose"):
        simulate(world, tmp_path / "empty", parallelism=2)
    assert not list(tmp_path.glob("**/*.parquet"))


def test_the_door_says_how_fast_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "logs"
    assert main(["simulate", "--requests", "300", "--days", "3", "--seed", "5", "--out", str(out)]) == 0
    assert "rows/s" in capfd.readouterr().out
    assert main(["simulate", "--requests", "300", "--out", str(out)]) == 2
    error = capfd.readouterr().err
    assert "not an empty folder" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--requests", "0"],
        ["--requests", "5", "--days", "0"],
        ["--requests", "5", "--candidates", "1"],
        ["--requests", "5", "--seed", "-1"],
        ["--requests", "5", "--end", "soon"],
        ["--requests", "5", "--parallelism", "0"],
        ["--requests", "5", "--surface", "/nowhere.yaml"],
    ],
)
def test_impossible_simulations_are_one_line(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "logs"
    assert main(["simulate", *options, "--out", str(out)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not out.exists() and not list(tmp_path.iterdir())
