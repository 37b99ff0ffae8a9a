"""Comparison of answers, and the stored cases: what is written reads back, bounded, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.surfaces import small_surface
from triton_models.errors import ParityError, RepositoryError
from triton_models.parity import Cases, compare, disagreements, load_cases, pack_cases

SURFACE = small_surface()
BATCH = 6


def answers() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What torch says, and an answer that equals it; action ``i`` is the best of case ``i``."""
    q_BAM = np.full((BATCH, SURFACE.num_actions, 2), 0.25, dtype=np.float32)
    action_B = np.arange(BATCH)
    q_BAM[action_B, action_B] = 0.75
    expected = {"action_values": q_BAM, "scores": q_BAM.mean(axis=2)}
    got = {
        "action_values": q_BAM.copy(),
        "action": action_B[:, None],
        "weights": SURFACE.actions.astype(np.float32)[action_B],
        "values": q_BAM[action_B, action_B],
    }
    return expected, got


def test_equal_answers() -> None:
    expected, got = answers()
    assert disagreements(SURFACE, expected, got) == []
    assert compare(SURFACE, expected, got) == 0.0


def test_every_difference_is_a_line_of_its_own() -> None:
    expected, got = answers()
    got["action_values"][2, 0, 1] += 2**-12
    got["action"][3] = 0
    got["weights"][4] += 1
    lines = disagreements(SURFACE, expected, got)
    assert len(lines) == 4
    assert "differ from torch by 0.000244141, more than 1e-05, at case 2: 0.250244 against 0.25" in lines[0]
    assert "chooses action 0 at case 3, torch 3" in lines[1]
    assert "weights are not" in lines[2] and "values are not" in lines[3]
    with pytest.raises(ParityError, match="at case 2"):
        compare(SURFACE, expected, got)
    assert disagreements(SURFACE, expected, got, tolerance=1e-3)[0].startswith("the model chooses")


def test_answers_of_another_shape_are_named() -> None:
    expected, got = answers()
    del got["weights"]
    got["action_values"] = got["action_values"][:, :-1]
    assert disagreements(SURFACE, expected, got) == [
        "output action_values: expected shape (6, 9, 2), got (6, 8, 2)",
        "output weights: expected shape (6, 2), got nothing",
    ]


def cases(count: int) -> Cases:
    rng = np.random.default_rng(0)
    inputs = {
        "user_embedding": rng.standard_normal((count, 4)).astype(np.float32),
        "context": rng.integers(0, 3, (count, 2)),
    }
    expected = {
        "action_values": rng.random((count, 9, 2), dtype=np.float32),
        "scores": rng.random((count, 9)),
    }
    return Cases(inputs, expected)


def test_cases_read_back_as_they_were(tmp_path: Path) -> None:
    stored = cases(20)
    file = tmp_path / "cases.npz"
    file.write_bytes(pack_cases(stored))
    back = load_cases(file)
    assert len(back) == 20
    for before, after in ((stored.inputs, back.inputs), (stored.expected, back.expected)):
        assert before.keys() == after.keys()
        for name, array in before.items():
            assert after[name].dtype == array.dtype
            np.testing.assert_array_equal(after[name], array)
    assert pack_cases(stored) == file.read_bytes(), "equal cases, equal bytes"


def test_stored_cases_are_bounded_and_keep_the_edges(tmp_path: Path) -> None:
    """A row is 16 + 16 + 72 + 72 bytes; the last rows are the edges."""
    stored = cases(100)
    file = tmp_path / "cases.npz"
    file.write_bytes(pack_cases(stored, limit_bytes=176 * 30))
    back = load_cases(file)
    assert len(back) == 30
    np.testing.assert_array_equal(back.inputs["context"], stored.inputs["context"][-30:])


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", pack_cases(cases(8))[:-40]], ids=["empty", "no-zip", "cut"]
)
def test_damaged_cases_are_one_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "cases.npz"
    with pytest.raises(RepositoryError, match="no stored cases"):
        load_cases(file)
    file.write_bytes(content)
    with pytest.raises(RepositoryError, match=r"cases.npz: stored cases"):
        load_cases(file)


def test_cases_without_answers_are_incomplete(tmp_path: Path) -> None:
    file = tmp_path / "cases.npz"
    np.savez(file, **{"input.x": np.zeros(3)})
    with pytest.raises(RepositoryError, match="incomplete"):
        load_cases(file)
