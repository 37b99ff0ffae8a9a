"""The fuzzers of answers, logs and files: they find what is planted, and a short run finds nothing else."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz.answers import answers
from benchmarks.fuzz.cases import Verdict, fault, generator
from benchmarks.fuzz.isolated import isolated
from benchmarks.fuzz.loaders import LoaderCases
from benchmarks.fuzz.log_files import LogFilesCases
from benchmarks.fuzz.mutate import altered, spoilt
from serve.answer_layout import Layout
from serve.http_wire import Response
from serve.wire import Answer, InputSpec
from tests.support.surfaces import small_surface
from triton_models.errors import BenchmarkError, FrontierError
from triton_models.surface import Surface

SURFACE = small_surface()


def run(cases: Any, number: int, seed: int = 5) -> list[Verdict]:
    return [cases.case(generator(seed, n)) for n in range(number)]


def findings(verdicts: list[Verdict]) -> list[str]:
    return [v.finding for v in verdicts if v.finding is not None]


def outcomes(verdicts: list[Verdict], kind: str) -> set[str]:
    return {v.outcome for v in verdicts if v.kind.startswith(kind)}


def test_answers_that_are_spoilt_are_errors_or_what_they_say() -> None:
    with answers(SURFACE) as cases:
        found = run(cases, 4000)
    assert findings(found) == []
    for who in ("value network", "ranker"):
        for way in ("gRPC", "HTTP"):
            assert outcomes(found, f"{who}, {way}: honest") == {"answered"}
            assert outcomes(found, f"{who}, {way}: bytes") >= {"answered", "UpstreamInvalidError"}
        assert outcomes(found, f"{who}, HTTP: status") == {"UpstreamRefusedError", "UpstreamUnavailableError"}
    for way in ("gRPC", "HTTP"):
        assert "fallback" in outcomes(found, f"value network, {way}: numbers")


def test_a_reader_that_trusts_its_layout_too_far_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Layout, answer: bytes) -> Any:
        found = {s.name: (s.datatype, s.shape, answer[s.begin : s.end]) for s in self.slots}
        return Answer(self.version, found)

    monkeypatch.setattr(Layout, "read", careless)
    with answers(SURFACE) as cases:
        found = findings(run(cases, 3000))
    assert any("does not say" in text or "believed" in text for text in found)


def test_a_reader_that_does_not_look_at_the_sizes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(response: Response) -> Answer:
        said, at = json.loads(response.body[: response.json_size]), response.json_size or 0
        outputs = {}
        for output in said["outputs"]:
            end = at + (InputSpec("", output["datatype"], tuple(output["shape"])).size or 0)
            outputs[output["name"]] = (output["datatype"], tuple(output["shape"]), response.body[at:end])
            at = end
        return Answer("1", outputs)

    monkeypatch.setattr("serve.http_wire.read_answer", careless)
    with answers(SURFACE) as cases:
        found = findings(run(cases, 3000))
    assert any("HTTP" in text and "believed" in text for text in found)


def test_a_client_whose_errors_are_not_ours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with answers(SURFACE) as cases:
        monkeypatch.setattr("serve.grpc_wire.GrpcWire.mapped", lambda self, error, who: error)
        found = findings(run(cases, 300))
    assert any("no UpstreamError" in text for text in found)


def test_logs_that_are_spoilt_are_read_or_refused_in_a_line() -> None:
    found = run(LogFilesCases(SURFACE), 150)
    assert findings(found) == []
    assert outcomes(found, "log: bytes") >= {"accepted", "refused"}
    assert {v.outcome for v in found} >= {"accepted, quarantine", "refused, quarantine"}


def test_a_check_that_breaks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise IndexError("off by one")

    monkeypatch.setattr("ray_train.planning.examine", broken)
    assert any("IndexError" in text for text in findings(run(LogFilesCases(SURFACE), 30)))


def test_a_quarantine_that_is_half_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(*arguments: Any) -> Path:
        folder = Path(arguments[3])
        folder.mkdir()
        (folder / "summary.json").write_text('{"bad_rows": {"bad_count": 1}}')
        return folder

    monkeypatch.setattr("ray_train.quarantine.write_quarantine", fewer)
    assert any("its summary says 1" in text for text in findings(run(LogFilesCases(SURFACE), 60)))


def test_files_that_are_spoilt_are_read_or_refused_in_a_line() -> None:
    found = run(LoaderCases(SURFACE), 400)
    assert findings(found) == []
    kinds = ["surface.yaml", "policy.yaml", "frontier.json", "run.json", "decisions", "events"]
    for kind in kinds:
        assert outcomes(found, kind) == {"read", "refused"}, kind
    assert outcomes(found, "spool: cut off") == {"segment"}


def test_a_loader_that_breaks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("points")

    monkeypatch.setattr("benchmarks.fuzz.loaders.load_frontier", broken)
    assert any("frontier.json: KeyError" in text for text in findings(run(LoaderCases(SURFACE), 60)))


class Deadly:
    """The second case takes the process with it."""

    def __init__(self, surface: Surface) -> None:
        self.made = 0

    def case(self, pick: random.Random) -> Verdict:
        self.made += 1
        if self.made == 2:
            os._exit(7)
        return Verdict(kind="deadly", outcome=str(self.made))


def stillborn(surface: Surface) -> Any:
    os._exit(8)


def test_a_case_that_kills_its_process_is_a_finding_and_the_others_go_on() -> None:
    found = list(isolated(Deadly, SURFACE, seed=0, cases=3))
    assert [number for number, _ in found] == [0, 1, 2]
    assert [v.finding for _, v in found] == [None, "it ended the process with code 7", None]
    with pytest.raises(BenchmarkError, match="before it made a case, code 8"):
        list(isolated(stillborn, SURFACE, seed=0, cases=3))


def test_a_refusal_is_an_error_of_ours_that_says_something() -> None:
    assert fault(FrontierError("a.json: is damaged")) is None
    assert "KeyError" in (fault(KeyError("x")) or "")
    for text in ("", "\n", "x" * 10_000):
        assert "is not told" in (fault(FrontierError(text)) or "")


@pytest.mark.parametrize(
    "spoil", [lambda pick: spoilt(pick, b"0123456789" * 9), lambda pick: altered(pick, {"a": [1, {"b": 2}]})]
)
def test_a_case_can_be_made_again(spoil: Callable[[random.Random], Any]) -> None:
    made = [repr(spoil(generator(3, n))) for n in range(50)]
    assert made == [repr(spoil(generator(3, n))) for n in range(50)]
    assert len(set(made)) > 30
