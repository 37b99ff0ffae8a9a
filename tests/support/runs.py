"""Finished runs without training, for tests of what comes after."""

from __future__ import annotations

from pathlib import Path

from triton_models.runs import SURFACE, WEIGHTS, DataWindow, RunManifest, write_manifest
from triton_models.state_sample import SAMPLE, pack_states
from triton_models.surface import Surface


def write_untrained_run(surface: Surface, path: str | Path, seed: int = 0) -> Path:
    """Write a run whose network was never fitted but is not trivial: BatchNorm statistics are random.

    Heads are scaled up, so that actions differ clearly and the choice depends on state and λ.
    """
    import torch

    from triton_models.export import parity_cases
    from triton_models.network import ValueNetwork
    from triton_models.network_config import NetworkConfig

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = NetworkConfig(history_width=16, state_width=32, backbone_width=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ValueNetwork(surface, config)
        with torch.no_grad():
            for block in network.head.backbone:
                block.norm.running_mean.normal_(0.0, 0.3)
                block.norm.running_var.uniform_(0.5, 2.0)
                block.norm.weight.uniform_(0.5, 2.0)
                block.norm.bias.normal_(0.0, 0.3)
            network.head.heads.weight.mul_(4.0)
            network.head.action.weight.mul_(4.0)
    torch.save(network.state_dict(), folder / WEIGHTS)
    (folder / SURFACE).write_text(surface.to_yaml(), encoding="utf-8")
    (folder / SAMPLE).write_bytes(pack_states(surface, parity_cases(surface, random_cases=300, seed=seed)))
    write_manifest(
        folder,
        RunManifest(
            run_id=f"untrained-{surface.name}-{seed}",
            created_at="2026-01-01T00:00:00+00:00",
            surface=surface.to_dict(),
            surface_fingerprint=surface.fingerprint,
            network=config.model_dump(mode="json"),
            training={"seed": seed},
            data=DataWindow(
                logs="none",
                rows_train=0,
                rows_holdout=0,
                train_window=("2026-01-01T00:00:00+00:00", "2026-01-15T00:00:00+00:00"),
                holdout_window=("2026-01-15T00:00:00+00:00", "2026-01-22T00:00:00+00:00"),
            ),
            metrics={"loss": 0.25},
            code_version="test",
        ),
    )
    return folder
