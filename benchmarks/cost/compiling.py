"""``torch.compile`` for every batch size by itself, and never a silent return to eager mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType

import torch
from torch import Tensor, nn

RECOMPILES = 256
"""Compilations of one function; at torch's own limit of eight it goes on uncompiled, without a word."""

Function = Callable[..., tuple[Tensor, ...]]


def compiled(module: nn.Module) -> Function:
    """The module, compiled at its first call with each batch size.

    Compilations are kept per code object, and all our modules share theirs: a function with code of its own
    keeps the contestants out of each other's way.
    """

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        answers: tuple[Tensor, ...] = module(*inputs)
        return answers

    alone = FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)
    with _quiet():
        function: Function = torch.compile(alone, dynamic=False)
    return function


@contextmanager
def no_silent_fallback() -> Iterator[None]:
    """Inside the block a function that cannot be compiled once more is an error, not a slower function."""
    with _quiet():
        import torch._dynamo.config as dynamo

    with dynamo.patch({"recompile_limit": RECOMPILES, "fail_on_recompile_limit_hit": True}):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """The compiler uses what torch itself deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
