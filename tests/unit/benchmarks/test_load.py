from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from benchmarks.commands.locust import check_host
from benchmarks.load.checks import check_ranking, check_weights
from benchmarks.load.samples import Samples, difference, summarize
from benchmarks.load.traffic import Mix, as_tensors, numbered, prepare, request_bodies
from serve.assignment import CompiledPolicy
from tests.support.surfaces import small_surface
from tests.unit.serve.test_policy import policy
from triton_models.errors import BenchmarkError

SURFACE = small_surface()
PREPARED = prepare(b'{"state":{},"candidates":[5,3,9,1],"k":3}')


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "items": [9, 5, 3],
        "scores": [3.0, 2.0, 2.0],
        "weights": {"repin": 105.0, "p2p": 15.5},
        "action": 4,
        "source": "value_network",
        "reason": None,
        "surface_fingerprint": SURFACE.fingerprint,
        **changes,
    }


PRODUCTION = {
    "weights": {"repin": 91.6, "p2p": 9.1},
    "action": None,
    "source": "production",
    "reason": "late",
}


def test_right_answers() -> None:
    assert check_ranking(answer(), SURFACE, PREPARED, control=True) is None
    assert check_ranking(answer(**PRODUCTION), SURFACE, PREPARED, control=True) is None
    assert check_weights(answer(**{**PRODUCTION, "reason": "control_off"}), SURFACE, control=False) is None


@pytest.mark.parametrize(
    ("changes", "control", "word"),
    [
        ({"items": [9, 5]}, True, "3 items"),
        ({"items": [9, 5, 5]}, True, "distinct"),
        ({"items": [9, 5, 77]}, True, "distinct"),
        ({"scores": [1.0, 2.0, 3.0]}, True, "order"),
        ({"scores": [1.0]}, True, "score per item"),
        ({"action": 9}, True, "grid"),
        ({"action": True}, True, "grid"),
        ({"action": 3}, True, "not those of action"),
        ({"weights": {"repin": 1.0}}, True, "lacks"),
        ({"source": "magic"}, True, "magic"),
        ({"surface_fingerprint": "x"}, True, "another control surface"),
        ({**PRODUCTION, "weights": {"repin": 105.0, "p2p": 15.5}}, True, "production"),
        ({**PRODUCTION, "reason": None}, True, "reason"),
        ({**PRODUCTION, "reason": "control_off"}, True, "control is on"),
        ({}, False, "control is off"),
    ],
)
def test_wrong_answers(changes: dict[str, Any], control: bool, word: str) -> None:
    problem = check_ranking(answer(**changes), SURFACE, PREPARED, control=control)
    assert problem is not None
    assert word in problem


def test_a_body_that_is_sent_again_has_an_id_of_its_own_and_draws_anew() -> None:
    line = b'{"request_id":"r1","user_id":"u","state":{},"candidates":[5],"k":1}'
    forms = prepare(line)
    for form in (forms.rank_on, forms.rank_off, forms.weights):
        first, second = (orjson.loads(numbered(form, n)) for n in (1, 2))
        assert (first["request_id"], second["request_id"]) == ("1-r1", "2-r1")
        assert {**first, "request_id": "r1"} == orjson.loads(form)
    exploring = CompiledPolicy(SURFACE, policy(exploration={"share": 0.0125}))

    def explored(ids: list[str]) -> int:
        return sum(exploring.wants_exploration(request_id=i, user_id=None, placement=None) for i in ids)

    # 40 bodies sent 500 times each: 250 draws of 20,000 are expected, 16 of them one standard deviation.
    bodies = [orjson.dumps({"request_id": f"q{n}"}) for n in range(40)]
    sent = [numbered(bodies[n % 40], n) for n in range(20_000)]
    assert abs(explored([orjson.loads(b)["request_id"] for b in sent]) - 250) < 5 * 16
    assert explored([f"q{n % 40}" for n in range(20_000)]) % 500 == 0  # all or nothing of each body


def test_prepared_forms() -> None:
    body = {"state": {}, "candidates": [5, 3, 9, 1], "k": 3}
    assert orjson.loads(PREPARED.rank_on) == {**body, "control": True}
    assert orjson.loads(PREPARED.rank_off)["control"] is False
    assert orjson.loads(PREPARED.weights) == {"state": {}}
    assert PREPARED.expected_items == 3


class FakeBatch:
    candidates = np.arange(200).reshape(50, 4)
    request_id = tuple(f"r{i}" for i in range(50))
    user_id = ("u",) * 50
    cohort = ("core",) * 50

    def __len__(self) -> int:
        return 50

    def state(self, row: int) -> dict[str, Any]:
        return {"history": {"embedding": [[1.0]], "action": ["save"], "age_s": [1.0]}, "context": {"d": "x"}}


def test_the_mix_holds_new_users_and_unknown_values() -> None:
    bodies = list(request_bodies(FakeBatch(), first=0, mix=Mix()))
    assert sum(not body["state"]["history"]["action"] for body in bodies) == 3  # rows 0, 20, 40
    assert sum(body["state"]["context"]["d"] == "never-seen" for body in bodies) == 2  # rows 1, 26


def test_a_constant_difference_is_found_exactly() -> None:
    off = np.random.default_rng(1).gamma(4.0, 2.0, size=2000)
    rows = difference(np.stack([off + 0.7, off], axis=1))
    for row in rows.values():
        assert row["difference"] == pytest.approx(0.7, abs=1e-3)
        assert row["interval"] == pytest.approx([0.7, 0.7], abs=1e-3)


def test_an_interval_covers_noise_around_nothing() -> None:
    pairs = np.random.default_rng(2).gamma(4.0, 2.0, size=(4000, 2))
    low, high = difference(pairs)["p50_ms"]["interval"]
    assert low < 0 < high
    assert high - low < 1.0


def test_summary_counts() -> None:
    samples = Samples()
    samples.add_answer(answer(), None, control=True)
    samples.add_answer(answer(**PRODUCTION), None, control=True)
    samples.add_answer(answer(**{**PRODUCTION, "reason": "control_off"}), None, control=False)
    samples.add_answer(None, "status 500", control=True)
    samples.add_pair(2.0, 1.0)
    summary = summarize(samples, duration_s=2.0, users=1)
    assert (summary["requests"], summary["failures"], summary["choices"]) == (4, 1, 1)
    assert summary["fallbacks"] == {"late": 1}
    assert summary["problems"] == {"status 500": 1}
    assert summary["control_on"] == {"requests": 1, "p50_ms": 2.0, "p95_ms": 2.0, "p99_ms": 2.0}
    assert summary["on_minus_off_ms"]["p50_ms"] == {"difference": 1.0, "interval": None}


def test_hosts() -> None:
    assert check_host("http://127.0.0.1:8000/", allow_remote=False) == "http://127.0.0.1:8000"
    assert check_host("http://[::1]:8000", allow_remote=False) == "http://[::1]:8000"
    assert check_host("http://localhost", allow_remote=False) == "http://localhost"
    assert check_host("http://example.com:80", allow_remote=True) == "http://example.com:80"
    for bad in ("http://example.com", "http://127.0.0.1.example.com", "ftp://127.0.0.1", "x", "http://a:b"):
        with pytest.raises(BenchmarkError):
            check_host(bad, allow_remote=False)


def test_the_binary_form_holds_the_same_request() -> None:
    from serve.requests import parse_rank
    from serve.tensor_body import parse_rank_tensors
    from tests.unit.serve.support import config  # the sidecar reads it back
    from triton_models.encoding import encode_state

    settings = config()
    surface = settings.surface
    history = surface.state.history
    assert history is not None
    body = {
        "request_id": "r7",
        "user_id": "u1",
        "cohort": None,
        "state": {
            "user_embedding": [0.25] * surface.state.user_embedding,
            "history": {
                "embedding": [[0.5] * history.embedding] * 2,
                "action": [history.actions[0], history.actions[-1]],
                "age_s": [60.0, 5.0],
            },
            "context": {name: words[0] for name, words in surface.state.context.items()},
        },
        "candidates": [5, 3, 9, 1],
        "k": 3,
    }
    line = orjson.dumps(body)
    raw, length = as_tensors(line, surface, control=False)
    binary = parse_rank_tensors(raw, str(length), settings)
    plain = parse_rank(prepare(line).rank_off, settings.limits, "INT64")
    assert (binary.request_id, binary.user_id, binary.k, binary.control) == ("r7", "u1", 3, False)
    assert list(binary.candidates) == list(plain.candidates)
    ours, theirs = (encode_state(surface, one.state or {}) for one in (binary, plain))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
