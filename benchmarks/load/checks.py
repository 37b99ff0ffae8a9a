"""Is an answer of the sidecar right? A run that is fast and wrong has failed."""

from __future__ import annotations

from itertools import pairwise
from math import isclose
from typing import Any

from benchmarks.load.traffic import Prepared
from triton_models.surface import Surface


def check_weights(answer: dict[str, Any], surface: Surface, *, control: bool) -> str | None:
    """What is wrong with the weights of an answer; None: nothing."""
    try:
        weights = [float(answer["weights"][head]) for head in surface.controlled_heads]
        source, action, reason = answer["source"], answer["action"], answer["reason"]
    except (KeyError, TypeError, ValueError) as error:
        return f"the answer lacks {error}"
    if answer["surface_fingerprint"] != surface.fingerprint:
        return "the sidecar serves another control surface than the logs were made for"
    if source == "production":
        if weights != surface.production.tolist():
            return f"source is production and the weights are {weights}"
        if action is not None or reason is None:
            return "production weights come with no action and a reason"
        return "control is on and the reason is control_off" if control and reason == "control_off" else None
    if not control:
        return "control is off and the weights are not a fallback"
    if source == "static":
        fine = weights == surface.production.tolist() and action is None and reason is None
        return None if fine else f"the policy says static and the answer is {weights}, {action!r}, {reason!r}"
    if source not in ("value_network", "exploration") or reason is not None:
        return f"source {source!r} with reason {reason!r}"
    if type(action) is not int or not 0 <= action < surface.num_actions:
        return f"action {action!r} is not one of the grid"
    # Not np.allclose, which takes ten times as long: this runs on the cores whose latency is measured.
    expected = surface.actions[action].tolist()
    if not all(isclose(a, b, rel_tol=1e-5, abs_tol=1e-8) for a, b in zip(weights, expected, strict=True)):
        return f"weights {weights} are not those of action {action}"
    return None


def check_ranking(
    answer: dict[str, Any], surface: Surface, prepared: Prepared, *, control: bool
) -> str | None:
    """What is wrong with a ranking; None: nothing."""
    return check_items(answer, prepared) or check_weights(answer, surface, control=control)


def check_items(answer: dict[str, Any], prepared: Prepared) -> str | None:
    """What is wrong with the items of a ranking, whoever made it; None: nothing."""
    items, scores = answer.get("items"), answer.get("scores")
    if not isinstance(items, list) or len(items) != prepared.expected_items:
        return f"expected {prepared.expected_items} items"
    if len(set(items)) != len(items) or not prepared.candidates.issuperset(items):
        return "items are not distinct candidates of the request"
    if not isinstance(scores, list) or len(scores) != len(items):
        return "expected one score per item"
    if any(a < b for a, b in pairwise(scores)):
        return "items are not in the order of their scores"
    return None
