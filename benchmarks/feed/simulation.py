"""The simulated feed on Ray Data: ``range → map_batches → write_parquet``, streaming.

One task simulates the rows of one file, so memory does not grow with the number of requests, and the
files do not depend on how many tasks run at a time. Files are numbered in the order of time.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.feed.config import WorldConfig
from benchmarks.feed.logs import log_table
from benchmarks.feed.world import World, save_world
from triton_models.errors import SimulationError
from triton_models.files import staged_directory
from triton_models.local_ray import start_local_ray
from triton_models.surface import Surface

FILE_ROWS = 32_768
ROW_GROUP_ROWS = 4_096
OBJECT_STORE_BYTES = 300 * 1024**2
LINE_INTERVAL_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a simulation wrote, and how fast."""

    rows: int
    files: int
    size_bytes: int
    parallelism: int
    write_s: float
    """Wall time of the pipeline, Ray being up."""
    total_s: float
    """Wall time with Ray's start."""
    core_us_per_row: float
    """Microseconds one core spends on simulating a row (without writing it)."""

    @property
    def rows_per_s(self) -> float:
        """Rows per second, Ray being up."""
        return self.rows / self.write_s

    @property
    def rows_per_s_with_start(self) -> float:
        """Rows per second, counting Ray's start."""
        return self.rows / self.total_s


def simulate(
    world: World, out: str | Path, *, parallelism: int | None = None, file_rows: int = FILE_ROWS
) -> Figures:
    """Write the world's whole exploration log; it appears under ``out`` only when it is complete.

    Args:
        world: the world; ``world.config.requests`` rows are written.
        out: a new or empty folder.
        parallelism: tasks at a time; the cores Ray has if None.
        file_rows: rows per file.

    Raises:
        SimulationError: ``out`` is in the way, or the pipeline failed.
        ServerError: Ray did not start.
    """
    try:
        return _simulate(world, Path(out), parallelism, file_rows)
    except OSError as error:
        raise SimulationError(f"{out}: cannot be written ({error})") from error


def _simulate(world: World, final: Path, parallelism: int | None, file_rows: int) -> Figures:
    if final.exists():
        if not final.is_dir() or any(final.iterdir()):
            raise SimulationError(f"{final} exists and is not an empty folder; choose another --out")
        final.rmdir()
    begin = time.monotonic()
    core_us = _warm_up(world)
    with _ray(parallelism) as cores, staged_directory(final) as staging:
        tasks = min(parallelism or cores, cores, -(-world.config.requests // file_rows))
        save_world(world, staging)
        _start_workers(world, tasks)
        start = time.monotonic()
        _write(world, staging, tasks, file_rows)
        _number_files(staging)
        end = time.monotonic()
    files = sorted(final.glob("*.parquet"))
    return Figures(
        rows=world.config.requests,
        files=len(files),
        size_bytes=sum(file.stat().st_size for file in files),
        parallelism=tasks,
        write_s=end - start,
        total_s=time.monotonic() - begin,
        core_us_per_row=core_us,
    )


def _write(world: World, staging: Path, tasks: int, file_rows: int) -> None:
    import ray.data

    count = -(-world.config.requests // file_rows)
    config, surface = world.config.model_dump_json(), world.surface.to_dict()

    def simulate_file(batch: dict[str, Any]) -> Iterator[pa.Table]:
        world = _world(config, _Hashable(surface))
        for number in batch["id"].tolist():
            first = number * file_rows
            yield log_table(world, first, min(file_rows, world.config.requests - first))

    with _quiet_ray_data(), _progress(staging, count):
        numbers = ray.data.range(count, override_num_blocks=count)
        tables = numbers.map_batches(simulate_file, batch_size=1, zero_copy_batch=True)
        options = functools.partial(_parquet_options, surface)
        try:
            tables.write_parquet(str(staging), concurrency=tasks, arrow_parquet_args_fn=options)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise SimulationError(f"the Ray Data pipeline failed: {reason}") from error


def _start_workers(world: World, tasks: int) -> None:
    """Let Ray start its worker processes, and build the world in each, before the clock runs."""
    import ray

    config, surface = world.config.model_dump_json(), world.surface.to_dict()

    def prepare() -> None:
        log_table(_world(config, _Hashable(surface)), 0, 1)
        time.sleep(0.2)  # long enough that no worker gets the task of another

    remote = ray.remote(num_cpus=1)(prepare)
    ray.get([remote.remote() for _ in range(tasks)])


def _parquet_options(surface: dict[str, Any]) -> dict[str, Any]:
    from ray_train.logs import log_schema

    schema = log_schema(Surface.from_dict(surface))
    words = [field.name for field in schema if pa.types.is_string(field.type)]
    # Embeddings do not compress; dictionaries pay for the few words only.
    dictionary = [name for name in words if name not in ("request_id", "user_id")]
    dictionary.append("history_action.list.element")
    return {
        "row_group_size": ROW_GROUP_ROWS,
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": dictionary,
    }


class _Hashable(dict[str, Any]):
    """Plain data as part of a cache key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(str(self))


@functools.lru_cache(maxsize=2)
def _world(config: str, surface: _Hashable) -> World:
    """One world per worker process and configuration."""
    return World(WorldConfig.model_validate_json(config), Surface.from_dict(dict(surface)))


def _warm_up(world: World) -> float:
    """Compile the kernels once, before many processes do, and time them: µs of one core per row."""
    rows = 2048
    log_table(world, 0, 1)
    start = time.process_time()
    log_table(world, 0, rows)
    return (time.process_time() - start) / rows * 1e6


def _number_files(staging: Path) -> None:
    """Name the files in the order of time, whatever Ray called them."""
    written = {}
    for path in staging.glob("*.parquet"):
        column = pq.read_table(path, columns=["request_id"]).column(0)
        if len(column):
            written[column[0].as_py()] = path
        else:
            path.unlink()
    for number, first in enumerate(sorted(written)):
        written[first].rename(staging / f"part-{number:05d}.parquet")


# ---------------------------------------------------------------------------------------------- Ray


@contextmanager
def _ray(parallelism: int | None) -> Iterator[int]:
    """A Ray that is up: the caller's, or one of our own that ends with the block. Yields its cores."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ours = not ray.is_initialized()
    if ours:
        start_local_ray(num_cpus=parallelism or os.cpu_count() or 1, object_store_memory=OBJECT_STORE_BYTES)
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield int(resources.get("CPU", 1))
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Our own progress is shown instead of Ray Data's."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    data_logger = logging.getLogger("ray.data")
    level = data_logger.level
    data_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before
        data_logger.setLevel(level)


@contextmanager
def _progress(staging: Path, files: int) -> Iterator[None]:
    """Count the files that have appeared: a bar on a terminal, an occasional line elsewhere."""
    done = threading.Event()
    words = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("files"))
    bar = Progress(*words, TimeElapsedColumn(), disable=not sys.stderr.isatty(), transient=True)

    def watch() -> None:
        task, shown = bar.add_task("files", total=files), time.monotonic()
        while not done.wait(0.5):
            ready = len(list(staging.glob("*.parquet")))
            bar.update(task, completed=ready)
            if bar.disable and time.monotonic() - shown > LINE_INTERVAL_S:
                shown = time.monotonic()
                sys.stderr.write(f"simulating: {ready} of {files} files\n")

    thread = threading.Thread(target=watch, daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
