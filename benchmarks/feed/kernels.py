"""The inner loops of the simulated feed, compiled by numba and cached beside this file.

Shape legend: n requests, C candidates, H engagement kinds, A weight vectors, K slots, S intents,
T dimensions of taste, I items. All floats are float32 but the products over a slate.

The chance that at least one engagement of kind h happens on slate ``x_1 .. x_K`` (position bias
``exam_j``, satiation ``ρ`` to the number of earlier slots of the same topic) is, for clipped rewards
``r_h ∈ {0, 1}``, exactly::

    E[r_h] = 1 - Π_j (1 - exam_j ρ^{seen_j} p_h(x_j))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Function = TypeVar("Function", bound=Callable[..., Any])
Array = npt.NDArray[Any]

MAX_PROBABILITY = np.float32(0.98)
REPIN, P2P, CLICK, HIDE = 0, 1, 2, 4
HEADS = 5
LIMIT, HALF, ONE = np.float32(60.0), np.float32(0.5), np.float32(1.0)
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
C1, C2, C3 = np.float32(1.6666665459e-1), np.float32(4.1665795894e-2), np.float32(8.3334519073e-3)
C4, C5 = np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
EXPONENT_BIAS, EXPONENT_SHIFT = np.int32(127), np.int32(23)
OUTCOMES = HEADS + 1
"""At least one engagement of each kind, and a successful session."""


def _compiled(function: Function) -> Function:
    decorator: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
    compiled: Function = decorator(function)
    return compiled


@_compiled
def score(
    taste_nT: Array,
    base_nH: Array,
    kind_nH: Array,
    scale_nH: Array,
    taste_H: Array,
    ids_nC: Array,
    item_IF: Array,
) -> Array:
    """Ranker heads [n, H, C]; ``item_IF`` holds an item's taste, its kind and its own logits in one row.

    The loops over candidates are written so that the compiler can vectorise them: hence the exponential
    of our own (Cephes, relative error 2e-7), which libm's would prevent.
    """
    n, count = ids_nC.shape
    tastes = taste_nT.shape[1]
    out = np.empty((n, HEADS, count), dtype=np.float32)
    match = np.empty(count, dtype=np.float32)
    kind = np.empty(count, dtype=np.float32)
    own = np.empty((HEADS, count), dtype=np.float32)
    power = np.empty(count, dtype=np.int32)
    scale = power.view(np.float32)
    for i in range(n):
        for j in range(count):
            item = ids_nC[i, j]
            total = np.float32(0.0)
            for t in range(tastes):
                total += taste_nT[i, t] * item_IF[item, t]
            match[j] = total
            kind[j] = item_IF[item, tastes]
            for h in range(HEADS):
                own[h, j] = item_IF[item, tastes + 1 + h]
        for h in range(HEADS):
            base, slope, steep = base_nH[i, h], kind_nH[i, h], taste_H[h]
            own_C = own[h]
            out_C = out[i, h]
            for j in range(count):
                logit = base + steep * match[j] + slope * kind[j] + own_C[j]
                x = -min(max(logit, -LIMIT), LIMIT)
                whole = np.floor(x * LOG2E + HALF)
                rest = x - whole * LN2_HIGH - whole * LN2_LOW
                series = (((C5 * rest + C4) * rest + C3) * rest + C2) * rest + C1
                out_C[j] = (series * rest + HALF) * rest * rest + rest + ONE
                power[j] = (np.int32(whole) + EXPONENT_BIAS) << EXPONENT_SHIFT
            for j in range(count):
                out_C[j] = scale_nH[i, h] / (ONE + out_C[j] * scale[j])
    return out


@_compiled
def _top(head_HC: Array, weight_H: Array, utility_C: Array, best: Array, value: Array) -> None:
    """Positions of the K candidates of highest utility (Eq. 1), best first; ties to the lower position."""
    slots = best.shape[0]
    for j in range(utility_C.shape[0]):
        utility_C[j] = weight_H[0] * head_HC[0, j]
    for h in range(1, HEADS):
        for j in range(utility_C.shape[0]):
            utility_C[j] += weight_H[h] * head_HC[h, j]
    filled = 0
    for j in range(utility_C.shape[0]):
        utility = utility_C[j]
        if filled == slots and utility <= value[slots - 1]:
            continue
        place = filled if filled < slots else slots - 1
        while place > 0 and value[place - 1] < utility:
            value[place] = value[place - 1]
            best[place] = best[place - 1]
            place -= 1
        value[place] = utility
        best[place] = j
        if filled < slots:
            filled += 1


@_compiled
def slates(head_nHC: Array, weight_nH: Array, slots: int) -> Array:
    """Positions of the served candidates, [n, K], best first; ``weight_nH`` has n rows or one."""
    n = head_nHC.shape[0]
    out = np.empty((n, slots), dtype=np.int32)
    value = np.empty(slots, dtype=np.float32)
    utility = np.empty(head_nHC.shape[2], dtype=np.float32)
    for i in range(n):
        row = i if weight_nH.shape[0] > 1 else 0
        _top(head_nHC[i], weight_nH[row], utility, out[i], value)
    return out


@_compiled
def _examined(slate_K: Array, topic_C: Array, exam_K: Array, satiation: float, j: int) -> float:
    """``exam_j ρ^{seen_j}`` of slot j."""
    seen: float = exam_K[j]
    for earlier in range(j):
        if topic_C[slate_K[earlier]] == topic_C[slate_K[j]]:
            seen *= satiation
    return seen


@_compiled
def _outcomes(none_H: Array, out_O: Array) -> None:
    """Chances of at least one engagement, and of a successful session, from those of none of a kind."""
    for h in range(HEADS):
        out_O[h] = 1.0 - none_H[h]
    out_O[HEADS] = (1.0 - none_H[REPIN] * none_H[P2P] * none_H[CLICK]) * none_H[HIDE]


@_compiled
def slate_probabilities(
    head_nHC: Array, slate_nK: Array, topic_nC: Array, ratio_nH: Array, exam_K: Array, satiation: float
) -> Array:
    """Chance of each engagement in each slot, exam · satiation · p, [n, K, H] float32."""
    n, slots = slate_nK.shape
    out = np.empty((n, slots, HEADS), dtype=np.float32)
    for i in range(n):
        for j in range(slots):
            seen = _examined(slate_nK[i], topic_nC[i], exam_K, satiation, j)
            for h in range(HEADS):
                p = min(head_nHC[i, h, slate_nK[i, j]] * ratio_nH[i, h], MAX_PROBABILITY)
                out[i, j, h] = seen * p
    return out


@_compiled
def expected(
    head_nHC: Array,
    weight_nAH: Array,
    topic_nC: Array,
    ratio_nSH: Array,
    exam_K: Array,
    satiation: float,
    topics: int,
) -> Array:
    """Expected outcomes of weight vectors, [n, A, S, OUTCOMES] float64; ``weight_nAH`` has n rows or one.

    S alternatives of the multipliers (one per intent) share the slate, since the ranker is blind to them.
    """
    n = head_nHC.shape[0]
    actions, slots, alternatives = weight_nAH.shape[1], exam_K.shape[0], ratio_nSH.shape[1]
    out = np.empty((n, actions, alternatives, OUTCOMES), dtype=np.float64)
    best = np.empty(slots, dtype=np.int32)
    value = np.empty(slots, dtype=np.float32)
    utility = np.empty(head_nHC.shape[2], dtype=np.float32)
    fresh = np.empty(topics, dtype=np.float64)
    seen = np.empty(slots, dtype=np.float64)
    none = np.empty(HEADS, dtype=np.float64)
    for i in range(n):
        row = i if weight_nAH.shape[0] > 1 else 0
        for a in range(actions):
            _top(head_nHC[i], weight_nAH[row, a], utility, best, value)
            fresh[:] = 1.0
            for j in range(slots):
                topic = topic_nC[i, best[j]]
                seen[j] = exam_K[j] * fresh[topic]
                fresh[topic] *= satiation
            for s in range(alternatives):
                none[:] = 1.0
                for j in range(slots):
                    for h in range(HEADS):
                        p = min(head_nHC[i, h, best[j]] * ratio_nSH[i, s, h], MAX_PROBABILITY)
                        none[h] *= 1.0 - seen[j] * p
                _outcomes(none, out[i, a, s])
    return out


@_compiled
def serve(
    head_nHC: Array,
    weight_VH: Array,
    vector_nP: Array,
    topic_nC: Array,
    ratio_nH: Array,
    exam_K: Array,
    satiation: float,
    uniform_nKH: Array,
) -> tuple[Array, Array]:
    """Serve request i by weight vector ``vector_nP[i, p]``: expected outcomes and drawn engagements.

    Policies that give a request the same vector share its slate, its chances and its engagements.

    Returns:
        expected outcomes [n, P, OUTCOMES] float64; engagements of each kind [n, P, H] int32.
    """
    n, policies = vector_nP.shape
    slots = exam_K.shape[0]
    expected_nPO = np.empty((n, policies, OUTCOMES), dtype=np.float64)
    count_nPH = np.zeros((n, policies, HEADS), dtype=np.int32)
    best = np.empty(slots, dtype=np.int32)
    value = np.empty(slots, dtype=np.float32)
    utility = np.empty(head_nHC.shape[2], dtype=np.float32)
    none = np.empty(HEADS, dtype=np.float64)
    server = np.empty(weight_VH.shape[0], dtype=np.int64)
    for i in range(n):
        server[:] = -1
        for p in range(policies):
            v = vector_nP[i, p]
            if server[v] >= 0:
                expected_nPO[i, p] = expected_nPO[i, server[v]]
                count_nPH[i, p] = count_nPH[i, server[v]]
                continue
            server[v] = p
            _top(head_nHC[i], weight_VH[v], utility, best, value)
            none[:] = 1.0
            for j in range(slots):
                seen = _examined(best, topic_nC[i], exam_K, satiation, j)
                for h in range(HEADS):
                    chance = seen * min(head_nHC[i, h, best[j]] * ratio_nH[i, h], MAX_PROBABILITY)
                    none[h] *= 1.0 - chance
                    if uniform_nKH[i, j, h] < np.float32(chance):
                        count_nPH[i, p, h] += 1
            _outcomes(none, expected_nPO[i, p])
    return expected_nPO, count_nPH


@_compiled
def count_engagements(chance_nKH: Array, uniform_nKH: Array) -> Array:
    """Sampled engagements of each kind, [n, H] int32."""
    n, slots, heads = chance_nKH.shape
    out = np.zeros((n, heads), dtype=np.int32)
    for i in range(n):
        for j in range(slots):
            for h in range(heads):
                if uniform_nKH[i, j, h] < chance_nKH[i, j, h]:
                    out[i, h] += 1
    return out
