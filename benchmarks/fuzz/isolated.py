"""Cases in a process of their own: one that kills it, or never ends, is a finding, and the others go on."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.fuzz.cases import Cases, Verdict, generator
from triton_models.errors import BenchmarkError
from triton_models.surface import Surface

HANGS_S = 120.0
"""A case that takes longer has found something."""

MOST_BYTES = 16 << 30
"""Address space of the process: a file that says it holds a terabyte must not take the machine with it."""


Source = Callable[[Surface], Cases]
"""Makes the cases of a surface; picklable, so a class of a module."""


def _work(pipe: Connection, source: Source, surface: dict[str, Any], seed: int, numbers: range) -> None:
    """In the process: each case's number before it, its verdict after it."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MOST_BYTES if hard == resource.RLIM_INFINITY else min(MOST_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    cases = source(Surface.from_dict(surface))
    for number in numbers:
        pipe.send(number)
        pipe.send(cases.case(generator(seed, number)))
    pipe.close()


def isolated(source: Source, surface: Surface, *, seed: int, cases: int) -> Iterator[tuple[int, Verdict]]:
    """Number and verdict of each case.

    Raises:
        BenchmarkError: the process ended before it made any.
    """
    context = multiprocessing.get_context("spawn")
    next_one = 0
    while next_one < cases:
        ours, theirs = context.Pipe(duplex=False)
        numbers = range(next_one, cases)
        process = context.Process(target=_work, args=(theirs, source, surface.to_dict(), seed, numbers))
        process.start()
        theirs.close()
        number, hung = next_one - 1, False
        try:
            while not hung:
                hung = not ours.poll(HANGS_S)
                if hung:
                    process.kill()
                elif isinstance(got := ours.recv(), Verdict):
                    yield number, got
                else:
                    number = got
        except EOFError:
            pass
        finally:  # also when nobody wants the rest
            ours.close()
            process.join()
        if number < next_one:
            raise BenchmarkError(f"the process ended before it made a case, code {process.exitcode}")
        if hung or process.exitcode != 0:
            what = "does not end" if hung else f"ended the process with code {process.exitcode}"
            yield number, Verdict(kind="the process", outcome="killed", finding=f"it {what}")
        next_one = number + 1
