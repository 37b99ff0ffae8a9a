"""Which version of a model is served: checked, written in one step, and what was served before it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from triton_models.config_pbtxt import (
    MODEL_SHA256,
    WARMUP_FOLDER,
    config_parameters,
    config_text,
    warmup_file_names,
)
from triton_models.errors import RepositoryError
from triton_models.files import write_atomically
from triton_models.published import (
    CONFIG,
    MODEL_FILE,
    PYTHON_FILE,
    SERVED_BEFORE,
    PublishedModel,
    require_model,
    version_config,
)
from triton_models.repository_files import locked

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

HISTORY_LIMIT = 20


def select_version(
    repository: str | Path, name: str, version: int, *, history: tuple[int, ...] | None = None
) -> None:
    """Serve another published version from the next load on; whole or not at all.

    Args:
        history: Versions served before it, oldest first; None derives them from what is selected now.

    Raises:
        RepositoryError: there is no such version, it is not whole, or it cannot be written.
    """
    root = Path(repository)
    require_model(root, name)
    try:
        with locked(root):
            config = selection_config(root, name, version, history=history)
            if config != require_model(root, name).config:
                write_config(root / name, config)
    except OSError as error:
        raise RepositoryError(f"{root / name}: cannot be written: {error}") from error


def selection_config(
    repository: str | Path, name: str, version: int, *, history: tuple[int, ...] | None = None
) -> ModelConfig:
    """The ``config.pbtxt`` that serves ``version``, after a check that its files are whole.

    Raises:
        RepositoryError: there is no such version, or it is not whole.
    """
    published = require_model(repository, name)
    config = version_config(repository, name, version)
    _check_whole(Path(repository) / name, version, config)
    remember(config, history_after(version, published) if history is None else history)
    return config


def _check_whole(folder: Path, version: int, config: ModelConfig) -> None:
    file = folder / str(version) / MODEL_FILE
    needed = [file, *(folder / WARMUP_FOLDER / name for name in sorted(warmup_file_names(config)))]
    if config.backend == "python":
        needed.append(folder / str(version) / PYTHON_FILE)
    for path in needed:
        if not path.is_file():
            raise RepositoryError(f"{path}: is missing; version {version} cannot be served, export it again")
    expected = config_parameters(config).get(MODEL_SHA256)
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise RepositoryError(f"{file}: cannot be read: {error}") from error
    if expected not in (None, found):
        raise RepositoryError(f"{file}: is not the file that was published; export version {version} again")


def next_history(version: int, serving: int, history: tuple[int, ...]) -> tuple[int, ...]:
    """Versions served before ``version`` once it replaces ``serving``, which had ``history`` before it.

    Going back to a version forgets what came after it, so that a second roll-back goes one further back
    and not forth again.
    """
    line = (*history, serving)
    return line[: line.index(version)] if version in line else line[-HISTORY_LIMIT:]


def history_after(version: int, before: PublishedModel | None) -> tuple[int, ...]:
    """:func:`next_history` for what a repository selects now."""
    return () if before is None else next_history(version, before.served, before.served_before)


def remember(config: ModelConfig, history: tuple[int, ...]) -> None:
    """Write the history into a configuration."""
    config.parameters[SERVED_BEFORE].string_value = json.dumps(list(history))


def write_config(model_folder: Path, config: ModelConfig) -> None:
    """Replace ``config.pbtxt`` in one step; hold the lock around it."""
    for left in model_folder.glob(f".{CONFIG}.*"):  # of a process that was killed while it wrote
        left.unlink()
    write_atomically(model_folder / CONFIG, config_text(config))
