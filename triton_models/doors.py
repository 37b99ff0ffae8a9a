"""What every command-line door shares: logging, one clear line on bad input, exit codes.

Exit codes: 0 done, 1 a bug of ours (with traceback), 2 bad input or an outside failure (one line),
130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

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
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted\n")
        return EXIT_INTERRUPTED
