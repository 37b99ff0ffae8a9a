from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve.blend import SORT_ALL, Blend, top_k
from tests.unit.serve.support import SURFACE

FEW_VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | st.floats(-1e6, 1e6)


@given(st.lists(FEW_VALUES, min_size=1, max_size=60), st.integers(1, 70), st.sampled_from([1, SORT_ALL + 1]))
def test_top_k_equals_sorting_everything(utility: list[float], k: int, times: int) -> None:
    utility = utility * times  # few candidates and many are cut in different ways
    naive = sorted(range(len(utility)), key=lambda i: (-utility[i], i))[:k]
    assert top_k(np.array(utility), k).tolist() == naive


@given(st.data())
def test_utility_equals_the_sum_by_hand(data: st.DataObject) -> None:
    columns = data.draw(st.permutations([*SURFACE.heads, "unused"]))
    rows = data.draw(st.integers(1, 5))
    scores = np.array(
        data.draw(
            st.lists(
                st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5), min_size=rows, max_size=rows
            )
        )
    )
    utility = Blend(SURFACE, tuple(columns)).utility(scores, np.array([100.0, 7.0]))
    weights = {"repin": 100.0, "p2p": 7.0, "click": 2.0, "hide": -40.0, "unused": 0.0}
    by_hand = [sum(weights[c] * row[i] for i, c in enumerate(columns)) for row in scores.tolist()]
    np.testing.assert_allclose(utility, by_hand, rtol=1e-9, atol=1e-9)
