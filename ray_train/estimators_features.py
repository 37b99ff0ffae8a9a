"""What a model of the reward may know of a request: the network's Q in a few numbers, a state digest.

``feature_NF`` of a row holds, in this order,

* for every objective the B coefficients of the network's ``Q_m(s, ·)`` in the functions of
  :mod:`ray_train.estimators_basis`, ``(1/A) Σ_a Q_m(s, a) φ_b(a)``;
* the state's digest: user embedding, context words as indicators, and of the history the share of every
  action type, the mean item embedding and the length. A digest wider than :data:`DIGEST_WIDTH` is projected
  on so many fixed random directions (Johnson & Lindenstrauss 1984).

Shape legend: n rows, A actions, M objectives, B basis functions, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ray_train.estimators_basis import ActionBasis, polynomial_basis
from ray_train.estimators_reward import ModelShape
from triton_models.surface import Surface

FloatArray = npt.NDArray[np.float32]

DIGEST_WIDTH = 48


def feature_shape(surface: Surface, basis: ActionBasis) -> ModelShape:
    """How a reward model uses the features of :func:`row_features`.

    Every feature by itself, and every coefficient of the network's Q with the function it belongs to.
    """
    objectives = len(surface.objectives)
    network = [(m * basis.size + b, b) for m in range(objectives) for b in range(basis.size)]
    digest = [(objectives * basis.size + f, 0) for f in range(digest_width(surface))]
    alone = [(f, 0) for f, b in network if b]
    return ModelShape(products=(*network, *alone, *digest))


def row_features(
    surface: Surface, coefficient_nX: npt.NDArray[np.float32], arrays: dict[str, npt.NDArray[Any]]
) -> FloatArray:
    """Features of encoded rows, [n, F]; the network's coefficients [n, M·B] first."""
    return np.concatenate([coefficient_nX, state_digest(surface, arrays)], axis=1)


def feature_width(surface: Surface) -> int:
    """F, for the basis of reward models."""
    return len(surface.objectives) * polynomial_basis(surface).size + digest_width(surface)


def state_digest(surface: Surface, arrays: dict[str, npt.NDArray[Any]]) -> FloatArray:
    """The state in at most :data:`DIGEST_WIDTH` numbers a row."""
    parts = [np.asarray(arrays["user_embedding"], dtype=np.float32)]
    for c, words in enumerate(surface.state.context.values()):
        parts.append(_indicators(arrays["context"][:, c : c + 1], len(words)))
    history = surface.state.history
    if history is not None:
        used = arrays["history_action"] > 0
        length = np.maximum(used.sum(axis=1, keepdims=True), 1)
        shares = _indicators(arrays["history_action"], len(history.actions)) / length
        # A sum along the middle takes four times as long.
        mean = np.einsum("nhe->ne", arrays["history_embedding"]) / length
        parts += [shares, mean, np.log1p(used.sum(axis=1, keepdims=True))]
    digest = np.concatenate(parts, axis=1).astype(np.float32)
    if digest.shape[1] <= DIGEST_WIDTH:
        return digest
    directions = np.random.default_rng(0).normal(size=(digest.shape[1], DIGEST_WIDTH))
    return np.asarray(digest @ (directions / np.sqrt(DIGEST_WIDTH)).astype(np.float32))


def digest_width(surface: Surface) -> int:
    """Columns of :func:`state_digest`."""
    state = surface.state
    width = state.user_embedding + sum(len(words) for words in state.context.values())
    if state.history is not None:
        width += len(state.history.actions) + state.history.embedding + 1
    return min(width, DIGEST_WIDTH)


def _indicators(codes: npt.NDArray[Any], words: int) -> FloatArray:
    """How often each code 1..words occurs in a row, [n, words]."""
    counts = [(codes == word).sum(axis=1) for word in range(1, words + 1)]
    return np.asarray(np.stack(counts, axis=1), dtype=np.float32)
