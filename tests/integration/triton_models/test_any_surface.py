"""Whatever the surface and the network's parts: the exported graph is the network, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triton_models.committee import CommitteeHead
from triton_models.export import check_cases, parity_cases, reference_cases
from triton_models.network import ValueNetwork
from triton_models.network_config import NetworkConfig
from triton_models.onnx_export import to_onnx
from triton_models.surface import Surface

OBJECTIVES = ("alpha", "beta", "gamma", "delta", "epsilon")
HEADS = ("w1", "w2", "w3", "w4")


def make_surface(objectives: int, points: list[int], history: int, context: list[int], user: int) -> Surface:
    state: dict[str, Any] = {"user_embedding": user}
    if history:
        state["history"] = {"length": history, "embedding": 3, "actions": ["save", "click", "hide"]}
    if context:
        state["context"] = {
            f"field{i}": [f"v{j}" for j in range(size)] for i, size in enumerate(context, start=1)
        }
    return Surface.from_dict(
        {
            "name": "any",
            "objectives": list(OBJECTIVES[:objectives]),
            "controlled": [
                {"head": head, "minimum": -1.0, "maximum": 3.0, "points": k, "production": 0.5}
                for head, k in zip(HEADS, points, strict=False)
            ],
            "fixed": {"rest": 1.0},
            "state": state,
        }
    )


@st.composite
def surfaces(draw: st.DrawFn) -> Surface:
    return make_surface(
        draw(st.integers(1, 5)),
        draw(st.lists(st.integers(2, 4), min_size=1, max_size=4)),
        draw(st.integers(0, 6)),
        draw(st.lists(st.integers(1, 4), max_size=3)),
        draw(st.integers(1, 9)),
    )


CONFIGS = st.builds(
    NetworkConfig,
    history_encoder=st.sampled_from(["transformer", "pooling"]),
    action_head=st.sampled_from(["backbone", "grid"]),
    history_width=st.just(8),
    history_layers=st.integers(0, 2),
    history_heads=st.sampled_from([1, 2]),
    history_pools=st.integers(1, 3),
    user_width=st.integers(1, 8),
    state_width=st.integers(1, 16),
    backbone_width=st.integers(1, 16),
    backbone_blocks=st.integers(1, 3),
)

SMALLEST = make_surface(1, [2], 0, [], 1)
LARGEST = make_surface(5, [4, 4, 4, 4], 6, [4, 1, 3], 9)
CHEAP = NetworkConfig(history_encoder="pooling", action_head="grid", history_width=8, state_width=8)
PLAIN = NetworkConfig(encoder="plain", action_head="grid", backbone_width=8, backbone_blocks=2)
COMMITTEE = NetworkConfig(
    encoder="plain", action_head="committee", members=3, state_width=8, backbone_width=8, backbone_blocks=2
)


def trained_like(surface: Surface, config: NetworkConfig) -> ValueNetwork:
    """A network whose BatchNorm has seen something, and whose choices differ."""
    torch.manual_seed(3)
    network = ValueNetwork(surface, config)
    with torch.no_grad():
        if isinstance(network.head, CommitteeHead):
            for value in network.parameters():
                value.normal_(0.0, 0.3)
            network.head.average_AM.normal_()
            network.head.personal_M.uniform_(0.2, 0.9)
            return network.eval()
        for block in network.head.backbone:
            block.norm.running_mean.normal_(0.0, 0.3)
            block.norm.running_var.uniform_(0.5, 2.0)
            block.norm.weight.uniform_(0.5, 2.0)
            block.norm.bias.normal_(0.0, 0.3)
    return network.eval()


# Every example exports a model, which takes seconds: few of them, the same ones every time.
@settings(max_examples=5, derandomize=True)
@given(surface=surfaces(), config=CONFIGS)
@example(surface=SMALLEST, config=NetworkConfig())
@example(surface=LARGEST, config=CHEAP)
@example(surface=SMALLEST, config=PLAIN)
@example(surface=LARGEST, config=PLAIN)
@example(surface=SMALLEST, config=COMMITTEE)
@example(surface=LARGEST, config=COMMITTEE)
def test_the_export_of_any_surface_is_its_network(surface: Surface, config: NetworkConfig) -> None:
    network = trained_like(surface, config)
    model = to_onnx(surface, network)
    assert check_cases(surface, model, reference_cases(surface, network)) <= 1e-5

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    good = parity_cases(surface, random_cases=12, seed=1)
    count = len(good["scalarization"])

    def ask(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    clean = ask(good)
    # The scale of λ says nothing.
    factor = np.where(good["scalarization"].max(axis=1, keepdims=True) < 1e30, 37.3, 1.0)
    scaled = ask({**good, "scalarization": (good["scalarization"] * factor).astype(np.float32)})
    lambda_BM = good["scalarization"].astype(np.float64)
    lambda_BM /= lambda_BM.max(axis=1, keepdims=True)
    score_BA = np.einsum("bam,bm->ba", clean["action_values"].astype(np.float64), lambda_BM)
    rows = np.arange(count)
    lost = score_BA[rows, clean["action"][:, 0]] - score_BA[rows, scaled["action"][:, 0]]
    np.testing.assert_allclose(lost, 0.0, atol=1e-6)

    # Codes that nobody knows are code 0.
    for name in {"context", "history_action"} & set(good):
        strange, zero = good[name].copy(), good[name].copy()
        strange[::2], zero[::2] = 9999, 0
        strange[::4] = -7
        known = ask({**good, name: zero})
        np.testing.assert_array_equal(ask({**good, name: strange})["action_values"], known["action_values"])

    # A row that is no question gets no answer, and the others get theirs.
    spoilt = {name: array.copy() for name, array in good.items()}
    for row, bad in enumerate((np.nan, np.inf, -1.0, 0.0)):
        spoilt["scalarization"][row] = bad
    spoilt["user_embedding"][4, 0] = np.nan
    if "history_embedding" in spoilt:
        spoilt["history_embedding"][5, 0, 0] = np.nan
        spoilt["history_action"][5, 0] = 1
    if "history_age_s" in spoilt:
        for row, bad in enumerate((np.nan, np.inf, -np.inf), start=6):
            spoilt["history_age_s"][row, 0] = bad
    spoilt_rows = 9 if "history_embedding" in spoilt else 5
    got = ask(spoilt)
    assert (got["action"][:spoilt_rows] == -1).all() and np.isnan(got["weights"][:spoilt_rows]).all()
    rest = slice(spoilt_rows, count)
    for name in names:
        np.testing.assert_allclose(got[name][rest], clean[name][rest], rtol=0, atol=1e-6)
