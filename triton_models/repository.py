"""A Triton model repository on disk: published into, selected in, read back, pruned.

::

    REPO/<model>/config.pbtxt             what Triton reads: the configuration of the one served version
    REPO/<model>/warmup/…                 inputs of the warm-up that zeros would not satisfy
    REPO/<model>/<version>/model.onnx
    REPO/<model>/<version>/model.py       (Python backend only)
    REPO/<model>/<version>/version.pbtxt  this version's own whole configuration; Triton ignores it
    REPO/<model>/<version>/cases.npz      stored cases of :mod:`triton_models.parity`; Triton ignores it

``config.pbtxt`` names the served version (``version_policy { specific { versions: N } }``), so a version
folder that lies there is not served by lying there. That makes each step safe alone: a new version is
filled beside the repository, fsynced and renamed in, still unserved; the one atomic replacement of
``config.pbtxt`` serves it; only then are old versions renamed out. Whoever looks, at any moment and after
``kill -9`` at any moment, finds the old served version or the new one, each with its own configuration.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from triton_models.config_pbtxt import (
    MODEL_SHA256,
    WARMUP_FOLDER,
    Backend,
    GpuOptions,
    InputRules,
    ModelSettings,
    build_config,
    config_text,
    served_versions,
    warmup_file_names,
    warmup_files,
)
from triton_models.errors import ConfigurationError, RepositoryError
from triton_models.files import sync_directory, write_atomically
from triton_models.published import (
    CONFIG,
    DEFAULT_REPOSITORY,
    MODEL_FILE,
    PYTHON_FILE,
    VERSION_CONFIG,
    PublishedModel,
    model_names,
    read_config,
    read_model,
    require_model,
    version_config,
    versions,
)
from triton_models.repository_files import locked, staging, sync_tree
from triton_models.selection import history_after, remember, select_version, selection_config, write_config
from triton_models.tensors import TensorSpec

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = [
    "DEFAULT_REPOSITORY",
    "PublishedModel",
    "model_names",
    "publish_model",
    "python_backend_source",
    "read_model",
    "require_model",
    "select_version",
    "selection_config",
    "version_config",
    "versions",
]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]*$")


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
    queue_delay_us: int = 0,
    gpu: GpuOptions | None = None,
    files: Mapping[str, bytes] | None = None,
    select: bool = True,
) -> int:
    """Publish an ONNX model as the next version of ``name``; it appears whole or not at all.

    The newest ``keep`` versions and the served one stay, others are removed. Inputs of type FP32 without a
    rule of their own are checked to be finite by the Python backend.

    Args:
        files: Further files of the version's folder, name → content.
        select: Serve the new version from the next load on. Without it the served version stays, unless
            there is none yet.

    Returns:
        The number of the new version.

    Raises:
        ConfigurationError: settings that do not fit together.
        RepositoryError: the model's folder cannot be read or written.
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
        queue_delay_us=queue_delay_us,
        gpu=gpu or GpuOptions(),
        input_rules={**finite, **(input_rules or {})},
        parameters={**(parameters or {}), MODEL_SHA256: hashlib.sha256(onnx_bytes).hexdigest()},
    )
    contents = {**(files or {}), MODEL_FILE: onnx_bytes}
    if backend == "python":
        contents[PYTHON_FILE] = python_backend_source()
    root = Path(repository)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            return _publish(root, settings, contents, keep=keep, select=select)
    except OSError as error:
        raise RepositoryError(f"{root / name}: cannot be written: {error}") from error


def _publish(
    root: Path, settings: ModelSettings, contents: Mapping[str, bytes], *, keep: int, select: bool
) -> int:
    before = read_model(root, settings.name)
    target = root / settings.name
    version = max(versions(target), default=0) + 1
    config = build_config(replace(settings, version=version))
    with staging(root) as stage:
        filled = stage / "filled"
        _fill(filled, version, config, contents, warmup_files(settings))
        remember(config, history_after(version, before))
        if not target.exists():
            (filled / CONFIG).write_text(config_text(config), encoding="utf-8")
            sync_tree(filled)
            filled.rename(target)
        else:
            sync_tree(filled)
            if before is not None:
                _adopt(target, before)
            _add(filled, target, version, config if select or before is None else None)
        sync_directory(root)
        try:
            _prune(target, keep=keep, stage=stage)
        except (
            OSError,
            RepositoryError,
        ) as error:  # the new version is there; the next publisher prunes again
            logger.warning("%s: old versions cannot be removed: %s", target, error)
    return version


def _fill(
    folder: Path,
    version: int,
    config: ModelConfig,
    contents: Mapping[str, bytes],
    warmup: Mapping[str, bytes],
) -> None:
    (folder / str(version)).mkdir(parents=True)
    for file, data in contents.items():
        (folder / str(version) / file).write_bytes(data)
    (folder / str(version) / VERSION_CONFIG).write_text(config_text(config), encoding="utf-8")
    for file, data in warmup.items():
        (folder / WARMUP_FOLDER).mkdir(exist_ok=True)
        (folder / WARMUP_FOLDER / file).write_bytes(data)


def _adopt(target: Path, before: PublishedModel) -> None:
    """Name the served version of a model that was published when "the latest" was served."""
    if served_versions(before.config) or before.served not in before.versions:
        return
    config = version_config(target.parent, target.name, before.served)
    write_atomically(target / str(before.served) / VERSION_CONFIG, config_text(config))
    write_config(target, config)


def _add(filled: Path, target: Path, version: int, config: ModelConfig | None) -> None:
    """Put a filled version into the model's folder and, given its ``config``, serve it."""
    for file in sorted(filled.glob(f"{WARMUP_FOLDER}/*")):
        # Equal names hold equal bytes, so replacing one changes nothing for the other versions.
        (target / WARMUP_FOLDER).mkdir(exist_ok=True)
        file.replace(target / WARMUP_FOLDER / file.name)
        sync_directory(target / WARMUP_FOLDER)
    (filled / str(version)).rename(target / str(version))
    sync_directory(target)
    if config is None:
        return
    try:
        write_config(target, config)
    except OSError:
        (target / str(version)).rename(filled / str(version))
        raise


def _prune(target: Path, *, keep: int, stage: Path) -> None:
    published = read_model(target.parent, target.name)
    if published is None:
        return
    for version in published.versions[:-keep]:
        if version != published.served:
            (target / str(version)).rename(stage / f"pruned.{version}")
    needed = warmup_file_names(published.config)
    for version in versions(target):
        if (target / str(version) / VERSION_CONFIG).exists():
            needed |= warmup_file_names(read_config(target / str(version) / VERSION_CONFIG))
    for file in target.glob(f"{WARMUP_FOLDER}/*"):
        if file.name not in needed:
            file.unlink()


def python_backend_source() -> bytes:
    """Source of the generic Python-backend model that serves any of our ONNX files."""
    return resources.files("triton_models").joinpath("python_backend/model.py").read_bytes()
