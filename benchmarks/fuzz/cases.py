"""What a source of cases is, and what a refusal has to look like: an error of ours that says something.

One line is made of it at the doors (:func:`triton_models.doors.run_door`).
"""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass
from typing import Protocol

from triton_models.errors import PutsError

LONGEST = 4000
"""Characters that people read."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one case came to."""

    kind: str
    outcome: str
    finding: str | None = None
    """What should not have happened."""


class Cases(Protocol):
    """Makes cases, one at a time, each from its own generator: any one can be made again alone."""

    def case(self, pick: random.Random) -> Verdict:
        """Make one, try it, judge it."""


def generator(seed: int, number: int) -> random.Random:
    """The generator of one case."""
    return random.Random(f"{seed}:{number}")


def fault(error: BaseException) -> str | None:
    """What is wrong with how something was refused; None: it is an error of ours, and says why."""
    if not isinstance(error, PutsError):
        where = traceback.extract_tb(error.__traceback__)
        last = f"{where[-1].filename}:{where[-1].lineno}" if where else "nowhere"
        return f"{type(error).__name__} at {last}: {' '.join(str(error).split())[:300]}"
    text = str(error)
    told = text.strip() and len(text) <= LONGEST
    return None if told else f"{type(error).__name__} is not told: {text[:300]!r}"
