"""Log → encoded blocks (Ray Data) → shuffled batches (one training worker).

Each Ray Data task reads a few row groups, drops bad rows and encodes the rest with
:func:`ray_train.ingest.encode_training`; only compact arrays travel. A worker whose shard fits the cache
reads it once and draws a new permutation of all its rows every epoch. Otherwise the log is read again
every epoch, in another order of its row groups, and rows are shuffled within a pool of blocks: local
shuffling over the whole stream would cost several times the throughput.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_train import columns
from ray_train.duplicates import hash_strings
from ray_train.ingest import Arrays, encode_training
from ray_train.reading import CleanReader, Unit
from triton_models.surface import Surface
from triton_models.tensors import state_specs

if TYPE_CHECKING:
    import ray.data

TASK_ROWS = 16_384
"""Rows that one reading task aims at: small enough to share out evenly, large enough to be worth a task."""

POOL_ROWS = 65_536
"""Rows that a streaming worker shuffles together."""

LARGEST_CODE = np.iinfo(np.int16).max


def row_bytes(surface: Surface) -> int:
    """Encoded size of one row in a training block."""
    integers = 2 if _codes_fit(surface) else 8
    state = sum(
        int(np.prod(spec.shape)) * (integers if spec.datatype == "INT64" else 4)
        for spec in state_specs(surface)
    )
    return state + 2 + 5 * len(surface.objectives) + 8


def _codes_fit(surface: Surface) -> bool:
    sizes = [len(words) for words in surface.state.context.values()]
    if surface.state.history is not None:
        sizes.append(len(surface.state.history.actions))
    return max(sizes, default=0) <= LARGEST_CODE


def group_units(units: Iterable[Unit], rows: int = TASK_ROWS) -> tuple[tuple[Unit, ...], ...]:
    """Neighbouring units together until a task has enough rows."""
    tasks: list[tuple[Unit, ...]] = []
    current: list[Unit] = []
    for unit in units:
        current.append(unit)
        if sum(member.rows for member in current) >= rows:
            tasks.append(tuple(current))
            current = []
    return (*tasks, tuple(current)) if current else tuple(tasks)


@dataclass(frozen=True, kw_only=True)
class EncodeTask:
    """Task number → encoded training rows; the function that Ray Data maps."""

    reader: CleanReader
    tasks: tuple[tuple[Unit, ...], ...]
    share: float = 1.0
    """Share of the rows to keep, drawn by a hash of the request id."""
    seed: int = 0

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> Iterator[Arrays]:
        """Encode the row groups of every task in the batch."""
        for number in batch["item"]:
            parts = list(self.slices(int(number)))
            if parts:
                yield concatenate(parts)

    def slices(self, number: int) -> Iterator[Arrays]:
        """Encode the row groups of one task, a slice of a file at a time."""
        surface = self.reader.surface
        for unit in self.tasks[number]:
            for table in map(self._sampled, self.reader.tables(unit)):
                if table.num_rows:
                    yield compact(surface, encode_training(surface, table))

    def _sampled(self, table: pa.Table) -> pa.Table:
        if self.share >= 1.0:
            return table
        hashes = hash_strings(columns.column(table, "request_id")) ^ np.uint64(self.seed)
        mixed = (hashes * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(11)
        return table.filter(pa.array(mixed < np.uint64(self.share * 2**53)))


def compact(surface: Surface, arrays: Arrays) -> Arrays:
    """What training and the gate read, in the smallest types."""
    kind = np.int16 if _codes_fit(surface) else np.int64
    names = [spec.name for spec in state_specs(surface)]
    state = {
        name: arrays[name].astype(kind) if arrays[name].dtype == np.int64 else arrays[name] for name in names
    }
    action = arrays["action"].astype(np.int16)
    propensity = arrays["propensity"].astype(np.float32)  # the gate's; training regresses under the logging
    return {
        **state,
        "action": action,
        "counts": arrays["counts"],
        "rewards": arrays["rewards"],
        "user": arrays["user"],
        "propensity": propensity,
    }


def concatenate(parts: list[Arrays]) -> Arrays:
    """Blocks one after the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def dataset(
    reader: CleanReader, units: tuple[Unit, ...], *, seed: int, share: float = 1.0, reshuffle: bool = False
) -> ray.data.Dataset:
    """A lazy Ray Data set of encoded rows, one block per task; ``reshuffle`` for a new order every pass."""
    import ray.data

    tasks = group_units(reader.units(units))
    encode = EncodeTask(reader=reader, tasks=tasks, share=share, seed=seed)
    items: ray.data.Dataset = ray.data.from_items(
        list(range(len(tasks))), override_num_blocks=max(1, len(tasks))
    )
    if reshuffle:
        items = items.randomize_block_order(seed=ray.data.RandomSeedConfig(seed))
    return items.map_batches(encode, batch_size=None, batch_format="numpy")


def sample_units(units: tuple[Unit, ...], rows: int) -> tuple[Unit, ...]:
    """Evenly spaced units with at least four times as many rows as a sample wants."""
    step = sum(unit.rows for unit in units) // (4 * rows)
    return units[::step] if step > 1 else units


def sample(reader: CleanReader, units: tuple[Unit, ...], *, rows: int, seed: int) -> Arrays | None:
    """About ``rows`` encoded rows of the reader's window, spread over it; None if there are none."""
    tasks = group_units(sample_units(reader.units(units), rows))
    known = sum(unit.rows for task in tasks for unit in task)
    encode = EncodeTask(reader=reader, tasks=tasks, share=min(1.0, 2 * rows / max(known, 1)), seed=seed)
    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, 8))) as pool:
        found = pool.map(lambda number: list(encode({"item": np.array([number])})), range(len(tasks)))
        blocks = [block for blocks in found for block in blocks]
    if not blocks:
        return None
    whole = concatenate(blocks)
    count = len(whole["action"])
    index = np.linspace(0, count - 1, min(rows, count)).astype(np.int64)
    return {name: array[index] for name, array in whole.items()}


def stream(reader: CleanReader, units: tuple[Unit, ...], *, rows: int | None, seed: int) -> Iterator[Arrays]:
    """Encoded rows of the reader's window, a slice of a file at a time; of more than ``rows``, about so many.

    Like :func:`sample`, but nothing is kept.
    """
    inside = reader.units(units)
    known = sum(unit.rows for unit in inside)
    share = 1.0 if rows is None else min(1.0, rows / max(known, 1))
    yield from EncodeTask(reader=reader, tasks=(inside,), share=share, seed=seed).slices(0)


def read_blocks(shard: ray.data.DataIterator) -> Iterator[Arrays]:
    """Blocks of one pass over a worker's shard."""
    # None means whole blocks; the annotation of Ray 2.60 does not know it.
    for block in shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):  # type: ignore[arg-type]
        if len(block.get("action", ())):
            yield block


def read_all(shard: ray.data.DataIterator) -> Arrays | None:
    """A whole shard in memory of the worker's own; None if it is empty."""
    blocks = list(read_blocks(shard))
    if not blocks:
        return None
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def shuffled_batches(
    blocks: Iterable[Arrays], batch_rows: int, rng: np.random.Generator, pool_rows: int = POOL_ROWS
) -> Iterator[Arrays]:
    """Batches of exactly ``batch_rows`` rows, shuffled within a pool; the odd rest is left out.

    A rest is used only when there is nothing else, since BatchNorm on a few rows does harm.
    """
    pool: list[Arrays] = []
    waiting, made = 0, 0
    for block in blocks:
        pool.append(block)
        waiting += len(block["action"])
        if waiting >= max(pool_rows, batch_rows):
            whole, order = concatenate(pool), rng.permutation(waiting)
            made += waiting // batch_rows
            yield from _cut(whole, order, batch_rows)
            left = order[waiting - waiting % batch_rows :]
            pool, waiting = [{name: array[left] for name, array in whole.items()}], len(left)
    if waiting:
        whole, order = concatenate(pool), rng.permutation(waiting)
        yield from _cut(whole, order, batch_rows)
        if made + waiting // batch_rows == 0:
            yield {name: array[order] for name, array in whole.items()}


def _cut(whole: Arrays, order: npt.NDArray[np.int64], batch_rows: int) -> Iterator[Arrays]:
    for i in range(len(order) // batch_rows):
        index = order[i * batch_rows : (i + 1) * batch_rows]
        yield {name: array[index] for name, array in whole.items()}
