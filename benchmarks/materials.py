"""What a benchmark of the sidecar needs on disk: surface, model repositories, request bodies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.load.traffic import Mix, write_world_traffic
from triton_models.surface import Surface, load_surface

DEFAULT_SURFACE = Path(__file__).parent / "surfaces" / "homefeed.yaml"
BODIES = 2000


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Where things lie."""

    surface: Surface
    surface_file: Path
    traffic: Path
    repository: Path | None
    """Of the value network; None: a stand-in answers."""
    ranker_repository: Path | None
    network: str
    """What the value network is, for people."""


def prepare_materials(
    folder: Path,
    *,
    run: Path | None = None,
    seed: int = 0,
    bodies: int = BODIES,
    models: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Materials:
    """Make what is not there yet.

    Args:
        folder: where to.
        run: a fitted run to export; None: a network of the parts that a distilled one is made of, never
            fitted, which costs the same.
        seed: of the simulated feed, whose requests and ranker are used.
        bodies: how many different requests.
        models: False leaves both models to stand-ins.
        say: told what takes time.

    Raises:
        PutsError: the run cannot be exported.
    """
    from benchmarks.feed.config import WorldConfig
    from benchmarks.feed.ranker_graph import publish_ranker
    from benchmarks.feed.world import World
    from triton_models.runs import load_run

    surface = load_run(run).surface if run is not None else load_surface(DEFAULT_SURFACE)
    folder.mkdir(parents=True, exist_ok=True)
    surface_file = folder / "surface.yaml"
    surface_file.write_text(yaml.safe_dump(surface.to_dict(), sort_keys=False), encoding="utf-8")
    world = World(WorldConfig(seed=seed), surface)
    traffic = folder / f"traffic-{seed}-{bodies}.jsonl"
    if not traffic.exists():
        say(f"preparing {bodies} requests of the simulated feed")
        write_world_traffic(world, traffic, count=bodies, mix=Mix())
    repository, ranker = folder / "repository", folder / "ranker_repository"
    network = f"run {run}" if run is not None else "distilled parts, never fitted"
    if models and not (repository / "value_network" / "config.pbtxt").exists():
        say(f"publishing the value network ({network})")
        _publish_network(repository, surface, run)
    if models and not (ranker / "ranker" / "config.pbtxt").exists():
        publish_ranker(world, ranker)
    return Materials(
        surface=surface,
        surface_file=surface_file,
        traffic=traffic,
        repository=repository if models else None,
        ranker_repository=ranker if models else None,
        network=network if models else "stand-in",
    )


def _publish_network(repository: Path, surface: Surface, run: Path | None) -> None:
    from triton_models.export import MAX_BATCH_SIZE, export_run, warmup_sizes

    if run is not None:
        export_run(run, repository)
        return
    from benchmarks.cost.networks import untrained_network
    from ray_train.distil_settings import student_config
    from triton_models.network_config import NetworkConfig
    from triton_models.onnx_export import to_onnx
    from triton_models.repository import publish_model
    from triton_models.served import input_rules
    from triton_models.tensors import VALUE_NETWORK, input_specs, output_specs

    network = untrained_network(surface, student_config(NetworkConfig()))
    publish_model(
        repository,
        name=VALUE_NETWORK,
        onnx_bytes=to_onnx(surface, network),
        inputs=input_specs(surface),
        outputs=output_specs(surface),
        max_batch_size=MAX_BATCH_SIZE,
        input_rules=input_rules(surface),
        warmup_batch_sizes=warmup_sizes(MAX_BATCH_SIZE),
        parameters={
            "surface": json.dumps(surface.to_dict()),
            "surface_fingerprint": surface.fingerprint,
            "run_id": "never-fitted",
        },
    )
