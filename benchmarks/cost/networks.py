"""The networks that are measured: fitted runs, or never fitted ones on a surface.

What a choice costs depends on shapes only, so an untrained network answers the question before any
logs are there. Its BatchNorm statistics are random, so that folding them wrongly would show.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from ray_train.distil_settings import student_config
from triton_models.errors import ConfigurationError
from triton_models.network import ValueNetwork
from triton_models.network_config import NetworkConfig
from triton_models.runs import load_run
from triton_models.surface import Surface, describe_validation_error, load_surface

EXAMPLE_SURFACE = {
    "name": "homefeed",
    "objectives": ["repin", "p2p"],
    "controlled": [
        {"head": "repin", "minimum": 10, "maximum": 200, "points": 7, "production": 91.6},
        {"head": "p2p", "minimum": 1, "maximum": 30, "points": 7, "production": 9.1},
    ],
    "fixed": {"click": 2.0, "closeup": 3.0, "hide": -40.0},
    "state": {
        "user_embedding": 64,
        "history": {"length": 50, "embedding": 32, "actions": ["save", "related", "click", "hide"]},
        "context": {
            "device": ["iphone", "android", "ipad", "web"],
            "surface": ["feed", "following", "board"],
            "daypart": ["night", "morning", "noon", "evening"],
        },
    },
    "cohorts": ["core", "casual", "rest"],
    "metrics": ["successful_session", "hide"],
}
"""A feed of realistic size: 49 actions, 50 history items; measured where no run and no file is given."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network whose choice is measured."""

    key: str
    """Short and unique in a measurement, fit for names of models and JSON keys."""
    label: str
    origin: str
    """A run's folder and id, or that the network was never fitted."""
    surface: Surface
    network: ValueNetwork


def load_subjects(
    run: Path | None, also: Sequence[Path], *, surface: Path | None = None, config: str = ""
) -> tuple[Subject, ...]:
    """The network to compare with its naive exports, then the further ones.

    Without a run: an untrained network, and an untrained one of cheap parts beside it.

    Raises:
        ConfigurationError: options that exclude each other, or an impossible ``config`` (JSON).
        RunError: a run is missing or damaged.
        SurfaceError: the surface file describes none.
        SurfaceMismatchError: the runs answer different requests.
    """
    if run is None:
        if also:
            raise ConfigurationError("--also adds runs to a RUN; name that first")
        chosen = Surface.from_dict(EXAMPLE_SURFACE) if surface is None else load_surface(surface)
        return _untrained_subjects(chosen, _network_config(config))
    if surface is not None or config:
        raise ConfigurationError("--surface and --network describe an untrained network; a RUN has its own")
    first = _from_run(run, "ours")
    others = [_from_run(path, f"also{i}") for i, path in enumerate(also, start=1)]
    for path, other in zip(also, others, strict=True):
        first.surface.require_same(other.surface, this=str(run), that=str(path))
    return (first, *others)


def _from_run(path: Path, key: str) -> Subject:
    run = load_run(path)
    return Subject(
        key=key,
        label="ours" if key == "ours" else run.path.resolve().name,
        origin=f"{run.path} ({run.manifest.run_id})",
        surface=run.surface,
        network=run.load_network(),
    )


def _network_config(text: str) -> NetworkConfig:
    try:
        return NetworkConfig.model_validate(json.loads(text or "{}"))
    except ValidationError as error:
        raise ConfigurationError(f"--network: {describe_validation_error(error)}") from error
    except ValueError as error:
        raise ConfigurationError(f"--network: not JSON ({error})") from error


def _untrained_subjects(surface: Surface, config: NetworkConfig) -> tuple[Subject, ...]:
    cheap = student_config(config)  # what a distilled network is made of; its cost needs no distillation
    wanted = [("ours", "ours", config)]
    if cheap != config:
        wanted.append(("cheap", "cheap parts", cheap))
    return tuple(
        Subject(
            key=key,
            label=label,
            origin=f"never fitted, seed {seed}",
            surface=surface,
            network=untrained_network(surface, parts, seed=seed),
        )
        for seed, (key, label, parts) in enumerate(wanted)
    )


def untrained_network(surface: Surface, config: NetworkConfig, *, seed: int = 0) -> ValueNetwork:
    """A network in evaluation mode whose choice depends on state and λ although it was never fitted."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = ValueNetwork(surface, config)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None and module.running_var is not None  # noqa: S101
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                if module.affine:
                    module.weight.uniform_(0.5, 2.0)
                    module.bias.normal_(0.0, 0.3)
        # Without this the differences between actions drown in float32 noise.
        for name, module in network.head.named_modules():
            if name in ("action", "heads", "table") and isinstance(module, nn.Linear):
                module.weight.mul_(4.0)
    return network.eval()
