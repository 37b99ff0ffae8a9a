"""The reference ranker in the real tritonserver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tritonclient.grpc as triton_grpc

import benchmarks
from benchmarks.cli import main
from benchmarks.feed.config import WorldConfig
from benchmarks.feed.ranker_graph import RANKER, ranker_inputs
from benchmarks.feed.world import World
from triton_models.server import EmbeddedServer
from triton_models.surface import load_surface


def test_triton_scores_like_the_world(tmp_path: Path) -> None:
    assert main(["ranker", "--repository", str(tmp_path), "--seed", "7"]) == 0
    homefeed = Path(benchmarks.__file__).parent / "surfaces" / "homefeed.yaml"
    world = World(WorldConfig(seed=7), load_surface(homefeed))
    batch = world.requests(0, 3)
    feed = {
        "user_embedding": batch.user_embedding,
        "context": batch.state_tensors(world.surface)["context"],
        "candidate_ids": batch.candidates.astype(np.int64),
    }
    tensors = []
    for spec in ranker_inputs(world.surface):
        tensor = triton_grpc.InferInput(spec.name, list(feed[spec.name].shape), spec.datatype)
        tensor.set_data_from_numpy(feed[spec.name])
        tensors.append(tensor)
    with EmbeddedServer(tmp_path) as server, triton_grpc.InferenceServerClient(server.grpc_address) as client:
        scores = client.infer(RANKER, tensors).as_numpy("scores")
    np.testing.assert_allclose(scores, world.head_scores(batch), rtol=2e-5)


def test_a_ranker_of_no_world_is_one_line(tmp_path: Path) -> None:
    assert main(["ranker", "--repository", str(tmp_path / "r"), "--logs", str(tmp_path)]) == 2
    assert not (tmp_path / "r").exists()
