"""What a load saw, request by request, in columns: small enough to keep whole, so nothing is lost to sums.

Times are seconds of the system's monotonic clock, which every process of a machine shares: what a fault
injector did and what a caller saw can be laid on one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_models.errors import BenchmarkError
from triton_models.files import write_atomically

Array = npt.NDArray[Any]

NO_ANSWER = 0
"""Status of a request whose connection broke."""

COLUMNS: Mapping[str, str] = {
    "phase": "i4",
    "number": "i8",
    "due_s": "f8",
    "sent_s": "f8",
    "ended_s": "f8",
    "status": "i2",
    "problem": "i4",
    "source": "i4",
    "reason": "i4",
    "arm": "i4",
    "version": "i4",
    "retries": "i2",
}
"""Column → NumPy type. ``number`` counts the run's requests; ``problem``, ``source``, ``reason`` and ``arm``
are codes of :attr:`Records.words`."""

NOTHING = 0
"""Code of the empty word: no problem, no reason."""


@dataclass(frozen=True)
class Records:
    """Requests in the order in which they ended."""

    columns: Mapping[str, Array]
    words: tuple[str, ...]
    """Text by code; number 0 is empty."""
    began_s: float
    """When the first phase began."""

    def __len__(self) -> int:
        return len(self.columns["phase"])

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    @property
    def latency_ms(self) -> Array:
        """From the moment the request was due to the end of its answer."""
        return np.asarray((self["ended_s"] - self["due_s"]) * 1e3)

    @property
    def ok(self) -> Array:
        """Which were answered, and rightly."""
        return np.asarray((self["status"] == 200) & (self["problem"] == NOTHING))

    def where(self, mask: Array) -> Records:
        """Some of them."""
        return Records(
            {name: values[mask] for name, values in self.columns.items()}, self.words, self.began_s
        )

    def due_between(self, begin_s: float, end_s: float) -> Records:
        """Those due in [begin_s, end_s)."""
        return self.where((self["due_s"] >= begin_s) & (self["due_s"] < end_s))

    def counts(self, column: str) -> dict[str, int]:
        """How often each word of a column occurs, most frequent first; the empty word is left out."""
        codes, counts = np.unique(self[column], return_counts=True)
        found = {self.words[code]: int(n) for code, n in zip(codes, counts, strict=True) if code != NOTHING}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def code(self, word: str) -> int:
        """Code of a word; -1, which no row has, for one that never occurred."""
        return self.words.index(word) if word in self.words else -1

    def save(self, path: Path) -> None:
        """Write one ``.npz``."""
        import io

        file = io.BytesIO()
        np.savez_compressed(
            file, words=np.array(self.words, dtype=np.str_), began_s=self.began_s, **self.columns
        )
        write_atomically(path, file.getvalue())


def load_records(path: Path) -> Records:
    """What :meth:`Records.save` wrote.

    Raises:
        BenchmarkError: it is not there or damaged: the load process did not end in order.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            columns = {name: data[name] for name in COLUMNS}
            return Records(columns, tuple(str(word) for word in data["words"]), float(data["began_s"]))
    except (OSError, ValueError, KeyError) as error:
        raise BenchmarkError(f"{path}: no records of a load: {error}") from error


@dataclass
class Recorder:
    """Collects rows in the load process."""

    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    codes: dict[str, int] = field(default_factory=lambda: {"": NOTHING})

    def code(self, word: str | None) -> int:
        """Code of a word, new ones added."""
        return self.codes.setdefault(word or "", len(self.codes))

    def add(self, **values: Any) -> None:
        """One request; a value for every column."""
        for name, column in self.rows.items():
            column.append(values[name])

    def records(self, began_s: float) -> Records:
        """Everything so far."""
        columns = {name: np.array(self.rows[name], dtype=kind) for name, kind in COLUMNS.items()}
        return Records(columns, tuple(self.codes), began_s)
