"""What every command-line door shares: logging, one clear line on bad input, exit codes.

Exit codes: 0 done, 1 a bug of ours (with traceback), 2 bad input or an outside failure (one line),
130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from triton_models.errors import PutsError

Command = Callable[[argparse.Namespace], int | None]

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _OneLineParser(argparse.ArgumentParser):
    """argparse prints the whole usage before an error; people look for one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser whose sub-parsers also answer mistakes with one line."""
    return _OneLineParser(
        prog=prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


class StopSignals:
    """SIGTERM and SIGINT as a request to stop, for doors that run until they are told to end.

    A plain flag and a poll, on purpose: a signal that arrives just before ``threading.Event.wait`` blocks
    is not noticed by it, and a handler that calls ``Event.set`` can wait for the lock that it interrupted.
    """

    KINDS = (signal.SIGTERM, signal.SIGINT)
    POLL_S = 0.1

    def __init__(self) -> None:
        self._asked = False

    def _ask(self, *_: object) -> None:
        self._asked = True

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked

    def wait(self) -> None:
        """Block until a signal comes; main thread only."""
        while not self._asked:
            time.sleep(self.POLL_S)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over; may be entered again where a library put handlers of its own in place."""
        before = {kind: signal.signal(kind, self._ask) for kind in self.KINDS}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def run_door(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Parse, run the chosen command (``set_defaults(command=…)``), and map errors to exit codes."""
    logging.basicConfig(
        level=os.environ.get("PUTS_LOG_LEVEL", "WARNING").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    options = parser.parse_args(arguments)
    command: Command = options.command
    try:
        return command(options) or 0
    except PutsError as error:
        # One line, even where a name that it quotes from somebody's file is of two.
        sys.stderr.write(f"{parser.prog}: error: {' '.join(str(error).splitlines())}\n")
        return EXIT_BAD_INPUT
    except OSError as error:
        # A full disk, a file where a folder should be, no permission: the person's to mend, not a bug.
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{parser.prog}: error: {where}{error.strerror or error}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted\n")
        return EXIT_INTERRUPTED


def run_commands(
    prog: str, description: str, package: str, names: Sequence[str], arguments: Sequence[str] | None = None
) -> int:
    """A door whose commands are modules of ``package``, each with ``add_parser(subparsers)``."""
    parser = new_parser(prog, description)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        import_module(f"{package}.{name}").add_parser(subparsers)
    return run_door(parser, arguments)


def say(text: str) -> None:
    """Print a line for a person, at once even into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
