"""What the paper reports (arXiv 2605.16344), as far as it was at hand. Nothing here was measured by us.

Lifts are fractions: 0.0226 is +2.26 %.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedPoint:
    """A row of Table 1."""

    alpha: float
    repin: tuple[float, float]
    """Online, offline."""
    p2p: tuple[float, float]
    sessions: float
    """Online."""


TABLE_1 = {
    "repin-leaning": PublishedPoint(
        alpha=0.17, repin=(0.0226, 0.0277), p2p=(-0.0021, -0.0030), sessions=-0.0009
    ),
    "balanced": PublishedPoint(alpha=0.21, repin=(0.0135, 0.0146), p2p=(-0.0004, 0.0041), sessions=-0.0002),
    "p2p-leaning": PublishedPoint(alpha=0.24, repin=(0.0066, 0.0031), p2p=(0.0030, 0.0118), sessions=0.0013),
}
PEARSON = {"repin": 0.999, "p2p": 0.986}
"""Online against offline, over those three policies."""
MATCHED_STATIC = (-0.0024, 0.0007, 0.0002)
"""Lifts of repin, p2p, sessions: the policy's average weights (p2p 11.83, not 9.1) given to everybody."""
PERSONALIZED = (0.0012, 0.0021, 0.0011)
"""Lifts of the personalized policy that those weights are the average of."""
COHORTS = "CORE barely responds to α, CASUAL most (up to +10 % repin)"
CONTROLLED_SHARE = 0.90
"""Almost so much of production utility is the two controlled heads' (Eq. 11)."""
P2P_SHARE = (0.01, 0.50)
"""Share of the p2p head at p2p weight 1 (under) and 30 (nearly)."""
FEW_ENGAGEMENTS = 0.80
"""More than this share of the requests have at most one engagement."""
ABLATION = "user features carry most of the signal, history nearly as much, context little"
