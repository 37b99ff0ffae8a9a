"""Ways to spoil bytes, and data that was JSON or YAML; drawn from a generator, so each can be made again."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), "", "x", "é", "\x00", "\n", "x" * 300, "[/b]", "NaN", "1"),
    *([], {}, [[]], [None], {"": None}, {"version": 1}),
)
"""What may stand in a place where something else is expected."""

MOST_EDITS = 4


def spoilt(pick: random.Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """The bytes with one to four edits: bits turned, pieces overwritten, left out, doubled, put in, cut off.

    Args:
        pick: decides everything.
        data: what is spoilt.
        words: pieces that mean something in this format.
    """
    out = bytearray(data)
    for _ in range(pick.randint(1, MOST_EDITS)):
        at = pick.randrange(len(out) + 1)
        size = min(pick.choice([1, 1, 2, 4, 8, 64]), len(out) - at)
        way = pick.randrange(6)
        if way == 0 and at < len(out):
            out[at] ^= 1 << pick.randrange(8)
        elif way == 1:
            out[at : at + size] = pick.choice([b"\x00" * size, b"\xff" * size, pick.randbytes(size)])
        elif way == 2:
            del out[at : at + size]
        elif way == 3:
            out[at:at] = out[at : at + size]
        elif way == 4:
            out[at:at] = pick.choice(words) if words else pick.randbytes(pick.randint(1, 8))
        elif pick.random() < 0.3:
            del out[at:]
    return bytes(out)


def altered(pick: random.Random, data: Any) -> Any:
    """A copy of plain data with one to three places that are odd, or missing, or there twice."""
    whole = {"": copy.deepcopy(data)}
    for _ in range(pick.randint(1, 3)):
        places = list(_places(whole))
        owner, key = pick.choice(places)
        way = pick.random()
        if way < 0.15:
            del owner[key]
        elif way < 0.25 and isinstance(owner, dict):
            owner[f"{key}x"] = owner[key]
        elif way < 0.35:
            other, name = pick.choice(places)
            owner[key] = copy.deepcopy(other[name])
        else:
            owner[key] = copy.deepcopy(pick.choice(ODD_VALUES))
        whole.setdefault("", None)
    return whole[""]


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of plain data."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found += [(node, key), *_places(node[key])]
    return found
