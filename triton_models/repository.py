"""A Triton model repository on disk: published into atomically, read back, pruned.

::

    REPO/<model>/config.pbtxt
    REPO/<model>/warmup/…            inputs of the warm-up that zeros would not satisfy
    REPO/<model>/<version>/model.onnx
    REPO/<model>/<version>/model.py  (Python backend only)

Publishing builds the whole model folder beside the repository, with the kept versions hard-linked in,
fsyncs it, and exchanges it with the old folder in one system call. So whoever looks at the repository,
at any moment and after any crash, sees the old configuration with the old versions or the new one with
the new versions, never a mixture.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from triton_models.config_pbtxt import (
    WARMUP_FOLDER,
    Backend,
    InputRules,
    ModelSettings,
    build_config,
    config_parameters,
    config_text,
    parse_config,
    warmup_files,
)
from triton_models.errors import ConfigurationError, RepositoryError
from triton_models.files import sync_directory
from triton_models.tensors import TensorSpec

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = "config.pbtxt"
MODEL_FILE = "model.onnx"
PYTHON_FILE = "model.py"
DEFAULT_REPOSITORY = Path("triton_models/repository")

_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]*$")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish_model(
    repository: str | Path,
    *,
    name: str,
    onnx_bytes: bytes,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    max_batch_size: int = 64,
    backend: Backend = "python",
    parameters: Mapping[str, str] | None = None,
    input_rules: InputRules | None = None,
    keep: int = 3,
    warmup_batch_sizes: tuple[int, ...] = (1,),
    instance_count: int = 1,
    intra_op_threads: int = 1,
) -> int:
    """Publish an ONNX model as the next version of ``name``; it appears whole or not at all.

    The newest ``keep`` versions stay, older ones are removed. Inputs of type FP32 without a rule of
    their own are checked to be finite by the Python backend.

    Returns:
        The number of the new version.

    Raises:
        ConfigurationError: settings that do not fit together.
        RepositoryError: the model's folder cannot be written.
    """
    if not _NAME.match(name):
        raise ConfigurationError(f"model name {name!r} must be letters, digits, '_', '-' and '.'")
    if keep < 1:
        raise ConfigurationError(f"keep must be at least 1, got {keep}")
    if not onnx_bytes:
        raise ConfigurationError(f"model {name}: the ONNX file is empty")
    finite = {spec.name: "finite" for spec in inputs if spec.datatype == "FP32"}
    settings = ModelSettings(
        name=name,
        inputs=inputs,
        outputs=outputs,
        backend=backend,
        max_batch_size=max_batch_size,
        instance_count=instance_count,
        intra_op_threads=intra_op_threads,
        warmup_batch_sizes=warmup_batch_sizes,
        input_rules={**finite, **(input_rules or {})},
        parameters=parameters or {},
    )
    root = Path(repository)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            return _publish(root, settings, onnx_bytes, keep)
    except OSError as error:
        raise RepositoryError(f"{root / name}: cannot be written: {error}") from error


def _publish(root: Path, settings: ModelSettings, onnx_bytes: bytes, keep: int) -> int:
    target = root / settings.name
    kept = versions(target)
    version = max(kept, default=0) + 1
    # Publishers hold the lock, so what lies there was left by one that was killed.
    for left in _staging_parent(root).glob(f".{root.name}.staging.*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=_staging_parent(root), prefix=f".{root.name}.staging."))
    try:
        folder = staging / settings.name
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / MODEL_FILE).write_bytes(onnx_bytes)
        if settings.backend == "python":
            (folder / str(version) / PYTHON_FILE).write_bytes(python_backend_source())
        (folder / CONFIG).write_text(config_text(build_config(settings)), encoding="utf-8")
        for file, data in warmup_files(settings).items():
            (folder / WARMUP_FOLDER).mkdir(exist_ok=True)
            (folder / WARMUP_FOLDER / file).write_bytes(data)
        for old in kept[-(keep - 1) :] if keep > 1 else []:
            shutil.copytree(target / str(old), folder / str(old), copy_function=_link_or_copy)
        _sync_tree(folder)
        _switch(folder, target, staging)
        sync_directory(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return version


def python_backend_source() -> bytes:
    """Source of the generic Python-backend model that serves any of our ONNX files."""
    return resources.files("triton_models").joinpath("python_backend/model.py").read_bytes()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(Path(place) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_directory(place)


def _staging_parent(root: Path) -> Path:
    """Beside the repository, so that Triton never sees it; inside only if that is another file system."""
    parent = root.resolve().parent
    same = parent.stat().st_dev == root.stat().st_dev and os.access(parent, os.W_OK)
    return parent if same else root


def _switch(new: Path, target: Path, staging: Path) -> None:
    """Put ``new`` in the place of ``target`` in one step where the file system can do that."""
    if not target.exists():
        new.rename(target)
        return
    if not exchange(new, target):
        target.rename(staging / "old")
        new.rename(target)


def exchange(one: Path, two: Path) -> bool:
    """Swap two paths atomically (``renameat2(RENAME_EXCHANGE)``); False where that does not exist."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    result = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE)
    return int(result) == 0


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One publisher at a time; the lock ends with its process."""
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -------------------------------------------------------------------- reading


@dataclass(frozen=True)
class PublishedModel:
    """What a repository says about one model."""

    name: str
    versions: tuple[int, ...]
    """Visible versions, oldest first."""
    parameters: dict[str, str]
    config: ModelConfig


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
    file = folder / CONFIG
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{file}: cannot be read: {error}") from error
    config = parse_config(text, source=str(file))
    return PublishedModel(name, tuple(versions(folder)), config_parameters(config), config)
