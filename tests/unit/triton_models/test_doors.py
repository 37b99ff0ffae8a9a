"""Exit codes and one clear line."""

from __future__ import annotations

import argparse
import os
import pickle
import signal
import threading

import pytest

from triton_models import errors
from triton_models.cli import build_parser, main
from triton_models.doors import StopSignals, new_parser, run_door
from triton_models.errors import PutsError, RunError


def door(outcome: object) -> argparse.ArgumentParser:
    def command(_: argparse.Namespace) -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome  # type: ignore[return-value]

    parser = new_parser("prog", "what it does")
    parser.set_defaults(command=command)
    return parser


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (RunError("x: is bad; do y"), 2, "prog: error: x: is bad; do y\n"),
        (KeyboardInterrupt(), 130, "prog: interrupted\n"),
    ],
)
def test_outcomes(outcome: object, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door(door(outcome), []) == code
    assert capsys.readouterr().err == line


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_door(door(ZeroDivisionError()), [])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["exprot"],
        ["export"],
        ["export", "run", "--keep", "0"],
        ["export", "run", "--keep", "many"],
        ["export", "run", "--backend", "tensorrt"],
        ["serve", "--http-port", "0"],
        ["serve", "--grpc-port", "70000"],
        ["serve", "--unknown"],
        ["rollout"],
        ["rollout", "h:1", "--version", "0"],
        ["rollback"],
        ["verify"],
        ["verify", "h:1", "--requests", "-1"],
        ["verify", "h:1", "--run", "r", "--repository", "p"],
        ["select"],
        ["select", "two"],
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "error: " in error and "--help" in error


@pytest.mark.parametrize(
    "command", [[], ["export"], ["serve"], ["rollout"], ["rollback"], ["verify"], ["versions"], ["select"]]
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: python -m triton_models" in capsys.readouterr().out


def test_every_error_survives_pickling_and_is_drawn_in_the_tree() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 10
    for kind in kinds:
        assert issubclass(kind, PutsError)
        assert kind.__name__ in (errors.__doc__ or "")
        back = pickle.loads(pickle.dumps(kind("message")))
        assert type(back) is kind and str(back) == "message"


def test_a_stop_signal_is_heard_even_just_before_the_wait() -> None:
    stop = StopSignals()
    before = signal.getsignal(signal.SIGTERM)
    with stop.installed():
        assert not stop.asked
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        stop.wait()
        timer.join()
    assert stop.asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_the_system_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: argparse.Namespace) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere/file")

    parser = new_parser("door", "A door.")
    parser.set_defaults(command=command)
    assert run_door(parser, []) == 2
    assert capsys.readouterr().err == "door: error: /somewhere/file: Permission denied\n"
