"""Operations are counted as torch counts them; bytes are worked out by hand for a small network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost.contestants import choice_inputs, torch_threads
from benchmarks.cost.counting import Product, products, work
from benchmarks.cost.naive import as_tensors, naive_network
from benchmarks.cost.networks import Subject, untrained_network
from tests.support.surfaces import small_surface_data
from triton_models.network_config import NetworkConfig
from triton_models.served import ServedValueNetwork
from triton_models.surface import Surface


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the measurement runs; two threads that wait for each other on a busy machine take for ever."""
    with torch_threads(1):
        yield


def subject_of(surface: Surface, config: NetworkConfig) -> Subject:
    network = untrained_network(surface, config)
    return Subject(key="ours", label="ours", origin="test", surface=surface, network=network)


def counted_by_torch(subject: Subject, arrangement: str, batch: int) -> int:
    network = subject.network
    if arrangement != "served":
        network = naive_network(network, arrangement)  # type: ignore[arg-type]
    module = ServedValueNetwork(subject.surface, network)
    tensors = as_tensors(choice_inputs(subject, batch))
    counter = FlopCounterMode(display=False)
    # As two matrix products: fused attention on the CPU is not in every torch's table.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(*tensors)
    return int(counter.get_total_flops())


def surface_of(history: int, weights: int, objectives: int, context: int) -> Surface:
    data = small_surface_data()
    names = [f"o{i}" for i in range(objectives)]
    controlled = [f"w{i}" for i in range(weights)]
    data["objectives"] = names
    data["controlled"] = [
        {"head": head, "minimum": 1, "maximum": 5, "points": 2 + i, "production": 2}
        for i, head in enumerate(controlled)
    ]
    data["fixed"] = dict.fromkeys(names, 1.0)
    data["state"]["history"] = (
        {"length": history, "embedding": 3, "actions": ["save", "click"]} if history else None
    )
    data["state"]["context"] = {f"c{i}": ["x", "y", "z"] for i in range(context)}
    return Surface.from_dict(data)


PLAIN = NetworkConfig(encoder="plain", action_head="grid", backbone_blocks=2, backbone_width=5)


@settings(max_examples=12)
@example(history=4, weights=2, objectives=2, context=2, batch=3, config=PLAIN, arrangement="served")
@example(history=4, weights=2, objectives=2, context=2, batch=3, config=PLAIN, arrangement="B")
@example(history=0, weights=2, objectives=2, context=0, batch=3, config=PLAIN, arrangement="served")
@given(
    history=st.integers(0, 6),
    weights=st.integers(1, 3),
    objectives=st.integers(1, 4),
    context=st.integers(0, 2),
    batch=st.integers(1, 4),
    config=st.builds(
        lambda **sizes: NetworkConfig(history_width=8, state_width=6, user_width=5, **sizes),
        history_encoder=st.sampled_from(["transformer", "pooling"]),
        action_head=st.sampled_from(["backbone", "grid"]),
        history_layers=st.integers(0, 2),
        history_heads=st.sampled_from([1, 2, 4]),
        history_pools=st.integers(1, 3),
        backbone_blocks=st.integers(1, 3),
        backbone_width=st.integers(2, 9),
        action_width=st.integers(1, 4),
    ),
    arrangement=st.sampled_from(["A", "B", "served"]),
)
def test_operations_are_those_that_torch_counts(
    history: int,
    weights: int,
    objectives: int,
    context: int,
    batch: int,
    config: NetworkConfig,
    arrangement: Any,
) -> None:
    surface = surface_of(history, weights, objectives, context)
    subject = subject_of(surface, config)
    expected = work(surface, config, batch, arrangement=arrangement).flops
    # The action half of the first layer is a constant that the constructor computes, outside the count.
    assert counted_by_torch(subject, arrangement, batch) == expected


def test_a_product_by_hand() -> None:
    # [3, 4] x [4, 5], twice per request: 2 * 2 * 3 * 4 * 5 operations; 20 parameters; 2 * (12 + 15) numbers.
    product = Product("x", 3, 4, 5, True, 2)
    assert (product.flops, product.weights, product.operands) == (240, 20, 54)
    # The right factor belongs to the request: no parameters, read each time.
    assert Product("x", 3, 4, 5, False).operands == 12 + 20 + 15
    assert Product("x", 3, 4, 5, False).weights == 0


def test_bytes_by_hand() -> None:
    data = small_surface_data()
    data["state"] = {"user_embedding": 4}
    data["controlled"] = data["controlled"][:1]
    data["fixed"] = {"p2p": 1.0, **data["fixed"]}
    surface = Surface.from_dict(data)
    config = NetworkConfig(user_width=2, state_width=3, action_width=1, backbone_width=2, backbone_blocks=1)
    # user 4x2, mix 2x3 (its second layer absorbed), state half 3x2, heads 2x2, scores 2x1 for 3 actions.
    assert [(p.rows, p.inner, p.columns) for p in products(surface, config)] == [
        (1, 4, 2), (1, 2, 3), (1, 3, 2), (3, 2, 2), (3, 2, 1)
    ]  # fmt: skip
    found = work(surface, config, 10)
    assert found.flops == 10 * 2 * (8 + 6 + 6 + 12 + 6)
    # In: 4 + 2 floats; out: one weight, two values (float32) and one action (int64); 24 parameters once.
    assert found.least_bytes == 10 * (4 * (4 + 2) + 4 * (1 + 2) + 8) + 4 * (8 + 6 + 6 + 4)
    assert found.operand_bytes == 10 * 4 * ((4 + 2) + (2 + 3) + (3 + 2) + (6 + 6) + (6 + 2 + 3)) + 4 * 24
    half = work(surface, config, 10, element_bytes=2)
    assert half.operand_bytes == found.operand_bytes / 2


def test_the_exported_structure_is_the_least_work(surface: Surface) -> None:
    for parts in ({}, {"action_head": "grid"}, {"history_encoder": "pooling"}):
        config = NetworkConfig(**parts)  # type: ignore[arg-type]
        flops = {kind: work(surface, config, 1, arrangement=kind).flops for kind in ("A", "B", "served")}  # type: ignore[arg-type]
        assert flops["A"] > flops["B"] > flops["served"]


@pytest.mark.parametrize("batch", [1, 64])
def test_work_grows_with_the_batch_but_parameters_are_read_once(surface: Surface, batch: int) -> None:
    config = NetworkConfig()
    one, many = work(surface, config, 1), work(surface, config, batch)
    assert many.flops == batch * one.flops
    assert many.least_bytes <= batch * one.least_bytes
