"""Kinds of arguments that several commands take."""

from __future__ import annotations

import argparse
from pathlib import Path

from triton_models.published import DEFAULT_REPOSITORY
from triton_models.tensors import VALUE_NETWORK

Subparsers = argparse._SubParsersAction


def positive(text: str) -> int:
    """A whole number ≥ 1."""
    return _whole(text, least=1)


def not_negative(text: str) -> int:
    """A whole number ≥ 0."""
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number ≥ {least}, got {text!r}")
    return number


def port(text: str) -> int:
    """A TCP port."""
    number = positive(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"expected a port in 1..65535, got {text!r}")
    return number


def add_repository(parser: argparse.ArgumentParser) -> None:
    """``--repository``."""
    parser.add_argument(
        "--repository", type=Path, default=DEFAULT_REPOSITORY, metavar="REPO", help="Triton model repository"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``."""
    parser.add_argument("--model", default=VALUE_NETWORK, metavar="NAME", help="name of the Triton model")


def add_url(parser: argparse.ArgumentParser) -> None:
    """``URL``."""
    parser.add_argument("url", metavar="URL", help="gRPC endpoint of the Triton server, host:port")
