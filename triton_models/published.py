"""What a model repository holds, read back; :mod:`triton_models.repository` describes its layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triton_models.config_pbtxt import config_parameters, parse_config, served_versions
from triton_models.errors import RepositoryError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = "config.pbtxt"
VERSION_CONFIG = "version.pbtxt"
MODEL_FILE = "model.onnx"
PYTHON_FILE = "model.py"
CASES_FILE = "cases.npz"
DEFAULT_REPOSITORY = Path("triton_models/repository")

SERVED_BEFORE = "served_before"
"""Parameter of ``config.pbtxt``: JSON list of the versions served before this one, oldest first."""


@dataclass(frozen=True)
class PublishedModel:
    """What a repository says about one model."""

    name: str
    versions: tuple[int, ...]
    """Visible versions, oldest first."""
    served: int
    """The version that Triton loads."""
    served_before: tuple[int, ...]
    """Versions served before it that are still there, oldest first."""
    parameters: dict[str, str]
    """Parameters of the served version."""
    config: ModelConfig
    """Configuration of the served version."""


def versions(model_folder: Path) -> list[int]:
    """Numeric version folders, oldest first."""
    if not model_folder.is_dir():
        return []
    return sorted(
        int(item.name) for item in model_folder.iterdir() if item.name.isdecimal() and item.is_dir()
    )


def model_names(repository: str | Path) -> tuple[str, ...]:
    """Names of the models in a repository.

    Raises:
        RepositoryError: there is no such folder, or it holds no model.
    """
    root = Path(repository)
    if not root.is_dir():
        raise RepositoryError(
            f"{root}: no such model repository; make one with python -m triton_models export RUN"
        )
    names = sorted(
        item.name
        for item in root.iterdir()
        if item.is_dir() and not item.name.startswith(".") and (versions(item) or (item / CONFIG).exists())
    )
    if not names:
        raise RepositoryError(
            f"{root}: the model repository is empty; publish with python -m triton_models export RUN"
        )
    return tuple(names)


def read_model(repository: str | Path, name: str) -> PublishedModel | None:
    """What is published under ``name``, or None.

    Raises:
        RepositoryError: its configuration cannot be read.
    """
    folder = Path(repository) / name
    if not (folder / CONFIG).exists():
        return None
    config = read_config(folder / CONFIG)
    present = tuple(versions(folder))
    named = served_versions(config) or present
    parameters = config_parameters(config)
    return PublishedModel(
        name=name,
        versions=present,
        served=max(named, default=0),
        served_before=tuple(version for version in served_before(parameters) if version in present),
        parameters=parameters,
        config=config,
    )


def require_model(repository: str | Path, name: str) -> PublishedModel:
    """What is published under ``name``.

    Raises:
        RepositoryError: nothing is, or it cannot be read.
    """
    there = model_names(repository)
    published = read_model(repository, name)
    if published is None:
        raise RepositoryError(f"{repository}: holds no model {name}; it holds {', '.join(there)}")
    return published


def read_config(file: Path) -> ModelConfig:
    """A configuration file, parsed with Triton's schema.

    Raises:
        RepositoryError: it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{file}: cannot be read: {error}") from error
    return parse_config(text, source=str(file))


def version_config(repository: str | Path, name: str, version: int) -> ModelConfig:
    """A version's own configuration.

    Raises:
        RepositoryError: there is no such version, or it does not carry one.
    """
    published = require_model(repository, name)
    folder = Path(repository) / name / str(version)
    if version not in published.versions:
        there = ", ".join(map(str, published.versions))
        raise RepositoryError(f"{folder}: no such version; the repository holds {there}")
    if (folder / VERSION_CONFIG).exists():
        return read_config(folder / VERSION_CONFIG)
    if version != published.served:
        raise RepositoryError(f"{folder}: {VERSION_CONFIG} is missing; export its run again")
    config = published.config
    config.version_policy.Clear()
    config.version_policy.specific.versions.append(version)
    config.parameters.pop(SERVED_BEFORE, None)
    return config


def served_before(parameters: Mapping[str, str]) -> tuple[int, ...]:
    """The history that a configuration carries; empty where it carries none that can be read."""
    try:
        return tuple(int(version) for version in json.loads(parameters.get(SERVED_BEFORE, "[]")))
    except (ValueError, TypeError):
        return ()
