"""The exported reference ranker equals the world's."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks.feed.ranker_graph import build_ranker_onnx, ranker_inputs, ranker_outputs
from benchmarks.feed.world import World


@pytest.fixture(scope="module")
def session(world: World) -> ort.InferenceSession:
    return ort.InferenceSession(build_ranker_onnx(world), providers=["CPUExecutionProvider"])


def _feed(world: World, first: int, count: int) -> dict[str, np.ndarray]:
    batch = world.requests(first, count)
    return {
        "user_embedding": batch.user_embedding,
        "context": batch.state_tensors(world.surface)["context"],
        "candidate_ids": batch.candidates.astype(np.int64),
    }


@pytest.mark.parametrize("count", [1, 37])
def test_the_graph_computes_the_heads(world: World, session: ort.InferenceSession, count: int) -> None:
    (scores,) = session.run(None, _feed(world, 11, count))
    np.testing.assert_allclose(scores, world.head_scores(world.requests(11, count)), rtol=2e-5)


def test_the_graph_takes_any_number_of_candidates_and_unknown_context(
    world: World, session: ort.InferenceSession
) -> None:
    feed = _feed(world, 0, 2)
    (whole,) = session.run(None, feed)
    (some,) = session.run(None, {**feed, "candidate_ids": feed["candidate_ids"][:, :3]})
    np.testing.assert_allclose(some, whole[:, :3], rtol=1e-6)
    (unknown,) = session.run(None, {**feed, "context": np.zeros_like(feed["context"])})
    assert np.isfinite(unknown).all() and (unknown > 0).all() and (unknown < 1).all()


def test_the_graph_is_what_triton_24_10_loads(world: World) -> None:
    model = onnx.load_from_string(build_ranker_onnx(world))
    assert model.ir_version <= 10 and model.opset_import[0].version <= 20
    assert [i.name for i in model.graph.input] == [spec.name for spec in ranker_inputs(world.surface)]
    assert [o.name for o in model.graph.output] == [spec.name for spec in ranker_outputs(world.surface)]
