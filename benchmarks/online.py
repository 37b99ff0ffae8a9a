"""What an operating point really does: the served model's choices on new requests of the simulated feed.

Every request is sent to the running Triton once per operating point, with the point's λ in the
``scalarization`` tensor, and the feed says in closed form what the chosen weights are worth. Policies see
the same requests, so lifts are paired and carry no engagement noise; what is left is which users came.

Shape legend: n requests of a chunk, P operating points, S static weight vectors, R outcomes (objectives,
then metrics), U users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from benchmarks.feed.requests import RequestBatch
from benchmarks.feed.world import World
from ray_train.estimators import FloatArray
from ray_train.intervals import ClusterBootstrap, relative_lifts
from triton_models.errors import UpstreamInvalidError, UpstreamUnavailableError
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK, input_specs

RPC_TIMEOUT_S = 30.0
"""Short deadlines can crash this Triton release (FACTS.md), so this one is long."""

CHUNK_REQUESTS = 512
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """True lifts of P operating points against production, with intervals over users.

    ``static_*`` are the same figures for weights that are the same for everybody, where asked for.
    """

    requests: int
    outcomes: tuple[str, ...]
    lift_PR: FloatArray
    bounds_PR2: FloatArray
    mean_weights_PW: FloatArray
    static_lift_SR: FloatArray
    static_bounds_SR2: FloatArray


def choose_actions(
    client: triton_grpc.InferenceServerClient,
    surface: Surface,
    tensors: dict[str, npt.NDArray[np.generic]],
    scalarization: npt.ArrayLike,
    *,
    batch_size: int = 64,
) -> npt.NDArray[np.int64]:
    """Actions that the served value network picks for encoded states, [n].

    Raises:
        UpstreamUnavailableError: Triton does not answer.
        UpstreamInvalidError: it picks actions that do not exist.
    """
    count = len(tensors["user_embedding"])
    lam = np.broadcast_to(np.asarray(scalarization, dtype=np.float32), (count, len(surface.objectives)))
    inputs = tensors | {"scalarization": np.ascontiguousarray(lam)}
    wanted = [triton_grpc.InferRequestedOutput("action")]
    chosen = []
    for start in range(0, count, batch_size):
        request = []
        for spec in input_specs(surface):
            part = inputs[spec.name][start : start + batch_size].astype(spec.dtype, copy=False)
            tensor = triton_grpc.InferInput(spec.name, list(part.shape), spec.datatype)
            tensor.set_data_from_numpy(part)
            request.append(tensor)
        try:
            answer = client.infer(VALUE_NETWORK, request, outputs=wanted, client_timeout=RPC_TIMEOUT_S)
        except InferenceServerException as error:
            raise UpstreamUnavailableError(f"Triton did not choose actions: {error}") from error
        chosen.append(answer.as_numpy("action")[:, 0])
    actions: npt.NDArray[np.int64] = np.concatenate(chosen)
    if (actions < 0).any() or (actions >= surface.num_actions).any():
        raise UpstreamInvalidError(f"Triton picked actions outside 0..{surface.num_actions - 1}")
    return actions


def measure(
    world: World,
    *,
    address: str,
    scalarizations: Sequence[npt.ArrayLike],
    first_request: int,
    requests: int,
    progress: Callable[[int], None],
    static_weights: Sequence[npt.ArrayLike] = (),
    seed: int = 0,
) -> Measured:
    """Measure operating points on ``requests`` requests of the feed from number ``first_request`` on.

    Args:
        world: the feed.
        address: gRPC address of the Triton that serves the value network.
        scalarizations: λ of each operating point.
        first_request: number of the first request; beyond the logged ones lies new traffic.
        requests: how many.
        progress: told how many requests are done, chunk by chunk.
        static_weights: controlled weights to measure as well, the same for everybody.
        seed: of the bootstrap.

    Raises:
        UpstreamError: Triton does not answer, or not with actions.
    """
    surface = world.surface
    outcomes = (*surface.objectives, *surface.metrics)
    policies = len(scalarizations)
    sums: dict[str, FloatArray] = {}
    weights_PW = np.zeros((policies, len(surface.controlled)))
    with triton_grpc.InferenceServerClient(address) as client:
        for start in range(0, requests, CHUNK_REQUESTS):
            batch = world.requests(first_request + start, min(CHUNK_REQUESTS, requests - start))
            tensors = batch.state_tensors(surface)
            rewards = [world.expected_rewards(batch, weights=surface.production)]
            for p, scalarization in enumerate(scalarizations):
                actions = choose_actions(client, surface, tensors, scalarization)
                rewards.append(world.expected_rewards(batch, actions=actions))
                weights_PW[p] += surface.actions[actions].sum(axis=0)
            rewards += [world.expected_rewards(batch, weights=np.asarray(w)) for w in static_weights]
            _add_users(sums, batch, np.stack(rewards, axis=1))
            progress(len(batch))
    sum_UPR2 = np.stack(list(sums.values()))
    bootstrap = ClusterBootstrap(resamples=RESAMPLES, seed=seed)
    bootstrap.add(sum_UPR2)
    lift, bounds = relative_lifts(sum_UPR2.sum(axis=0))[1:], bootstrap.bounds()[1:]
    return Measured(
        requests=requests,
        outcomes=outcomes,
        lift_PR=lift[:policies],
        bounds_PR2=bounds[:policies],
        mean_weights_PW=weights_PW / requests,
        static_lift_SR=lift[policies:],
        static_bounds_SR2=bounds[policies:],
    )


def _add_users(sums: dict[str, FloatArray], batch: RequestBatch, reward_nPR: FloatArray) -> None:
    """Add each request's rewards (numerators) and ones (denominators) to its user's sums."""
    pair_nPR2 = np.stack([reward_nPR, np.ones_like(reward_nPR)], axis=-1)
    for user, pair_PR2 in zip(batch.user_id, pair_nPR2, strict=True):
        key = str(user)
        if key in sums:
            sums[key] += pair_PR2
        else:
            sums[key] = pair_PR2.astype(np.float64)
