"""Floating-point operations and bytes of one choice, counted from the network's shapes.

A matrix product ``[n, k] × [k, m]`` is ``2 n k m`` operations, as ``torch.utils.flop_counter`` counts;
element-wise work (normalisation, activations, softmax) is not counted. Two counts of bytes:

* *least*: each input, each parameter and each output that is asked for, once; no version moves less;
* *operands*: what every matrix product reads and writes when each is a kernel of its own, with the
  element-wise work between them fused into it; what an unfused version moves at the least.

Shape legend: A actions, M objectives, W controlled weights, N history, E item embedding, H history width,
K learned queries, V values of an entry, S state width, X backbone width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from triton_models.network_config import NetworkConfig
from triton_models.plain_encoder import BAND_EDGES_S
from triton_models.surface import HistorySpec, Surface
from triton_models.tensors import input_specs, output_specs

Arrangement = Literal["A", "B", "served"]
"""How often what is done: everything per action, the head per action, or the exported structure."""

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Product:
    """A matrix product ``[rows, inner] × [inner, columns]``, done ``times`` times per request."""

    name: str
    rows: int
    inner: int
    columns: int
    parameters: bool = True
    """The right factor is a weight, which a batch reads once; else it is data of the request."""
    times: int = 1

    @property
    def flops(self) -> int:
        """Operations per request."""
        return 2 * self.times * self.rows * self.inner * self.columns

    @property
    def weights(self) -> int:
        """Parameters."""
        return self.inner * self.columns if self.parameters else 0

    @property
    def operands(self) -> int:
        """Numbers read and written per request, parameters excluded."""
        right = 0 if self.parameters else self.inner * self.columns
        return self.times * (self.rows * self.inner + right + self.rows * self.columns)


@dataclass(frozen=True)
class Work:
    """What one batch must do."""

    flops: float
    least_bytes: float
    operand_bytes: float


def products(
    surface: Surface, config: NetworkConfig, arrangement: Arrangement = "served"
) -> tuple[Product, ...]:
    """Every matrix product of one choice."""
    encoder, actions = _encoder(surface, config), surface.num_actions
    scores = Product("scores", actions, len(surface.objectives), 1, False)
    if arrangement == "served":
        # The last layer of the encoder is absorbed by the first of the head; a plain one has none.
        encoder = _plain_encoder(surface, 1) if config.encoder == "plain" else encoder[:-1]
        return (*encoder, *_served_head(surface, config), scores)
    head = tuple(_times(_pair_head(surface, config), actions))
    return (*(_times(encoder, actions) if arrangement == "A" else encoder), *head, scores)


def _times(every: Iterable[Product], times: int) -> Iterable[Product]:
    for product in every:
        yield Product(
            product.name,
            product.rows,
            product.inner,
            product.columns,
            product.parameters,
            product.times * times,
        )


def _plain_encoder(surface: Surface, further: int) -> tuple[Product, ...]:
    """Sums over the history by age, of an entry's values and so many ``further`` ones."""
    history = surface.state.history
    if history is None:
        return ()
    values = history.embedding + len(history.actions) + further
    return (Product("history sums", len(BAND_EDGES_S), history.length, values, False),)


def _state_width(surface: Surface, config: NetworkConfig, further: int) -> int:
    if config.encoder != "plain":
        return config.state_width
    words = sum(len(field) for field in surface.state.context.values())
    return (
        surface.state.user_embedding
        + words
        + sum(p.rows * p.columns for p in _plain_encoder(surface, further))
    )


def _encoder(surface: Surface, config: NetworkConfig) -> tuple[Product, ...]:
    if config.encoder == "plain":
        return _plain_encoder(surface, 0)
    state, width = surface.state, config.user_width + config.context_width * len(surface.state.context)
    found = [Product("user", 1, state.user_embedding, config.user_width)]
    if state.history is not None:
        width += config.history_width
        count = _pooling if config.history_encoder == "pooling" else _transformer
        found += count(state.history, config)
    found += [
        Product("mix 1", 1, width, config.state_width),
        Product("mix 2", 1, config.state_width, config.state_width),
    ]
    return tuple(found)


def _transformer(history: HistorySpec, config: NetworkConfig) -> list[Product]:
    length, width, heads = history.length, config.history_width, config.history_heads
    layer = [
        Product("query, key, value", length, width, 3 * width),
        Product("attention scores", length, width // heads, length, False, heads),
        Product("attention mean", length, length, width // heads, False, heads),
        Product("projection", length, width, width),
        Product("feed forward 1", length, width, 2 * width),
        Product("feed forward 2", length, 2 * width, width),
    ]
    return [
        Product("item", length, history.embedding, width),
        Product("age", length, 1, width),
        *layer * config.history_layers,
    ]


def _pooling(history: HistorySpec, config: NetworkConfig) -> list[Product]:
    length, pools = history.length, config.history_pools
    # An entry: its item, its action type (padding included) one-hot, its age.
    values = history.embedding + len(history.actions) + 2
    return [
        Product("pool scores", length, values, pools),
        Product("pool means", pools, length, values, False),
        Product("mix pools", 1, pools * values, config.history_width),
    ]


def _served_head(surface: Surface, config: NetworkConfig) -> list[Product]:
    width, objectives, actions = config.backbone_width, len(surface.objectives), surface.num_actions
    deep = config.backbone_blocks - 1
    first = Product("backbone 1, state half", 1, _state_width(surface, config, 1), width)
    if config.action_head == "grid":
        rest = [Product(f"backbone {i + 2}", 1, width, width) for i in range(deep)]
        return [first, *rest, Product("table", 1, width, actions * objectives)]
    rest = [Product(f"backbone {i + 2}", actions, width, width) for i in range(deep)]
    return [first, *rest, Product("heads", actions, width, objectives)]


def _pair_head(surface: Surface, config: NetworkConfig) -> list[Product]:
    """The head for one (state, action), as it is trained."""
    width, objectives, actions = config.backbone_width, len(surface.objectives), surface.num_actions
    grid = config.action_head == "grid"
    state = _state_width(surface, config, 0)
    start = state if grid else state + config.action_width
    widths = [start] + [width] * config.backbone_blocks
    blocks = [Product(f"backbone {i + 1}", 1, a, b) for i, (a, b) in enumerate(pairwise(widths))]
    if grid:
        table = Product("table", 1, width, actions * objectives)
        return [*blocks, table, Product("interpolation", 1, actions, objectives, False)]
    action = Product("action", 1, len(surface.controlled), config.action_width)
    return [action, *blocks, Product("heads", 1, width, objectives)]


def work(
    surface: Surface,
    config: NetworkConfig,
    batch: int,
    *,
    arrangement: Arrangement = "served",
    element_bytes: int = FLOAT_BYTES,
) -> Work:
    """Operations and bytes of one batch; ``element_bytes`` of parameters and intermediate results."""
    every = products(surface, config, arrangement)
    asked = [spec for spec in output_specs(surface) if spec.name != "action_values"]
    crossing = sum(
        int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in (*input_specs(surface), *asked)
    )
    weights = element_bytes * sum(product.weights for product in every)
    operands = element_bytes * sum(product.operands for product in every)
    return Work(
        flops=float(batch * sum(product.flops for product in every)),
        least_bytes=float(batch * crossing + weights),
        operand_bytes=float(batch * operands + weights),
    )
