"""The Ray cluster of a command: a local one of its own, or one that exists; and what went wrong there."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import ray
from ray.exceptions import RayTaskError

from ray_train.checks import UnitReport
from ray_train.planning import Check, Mapper, in_threads
from ray_train.reading import Unit
from ray_train.settings import FitSettings
from triton_models.errors import ConfigurationError, PutsError
from triton_models.local_ray import start_local_ray

DATA_CPUS = 1
"""Logical CPUs that Ray Data needs beside the training workers; with none left it would wait forever."""


@contextmanager
def ray_cluster(settings: FitSettings, address: str | None = None) -> Iterator[Mapper]:
    """Connect to ``address`` (or ``RAY_ADDRESS``, or a cluster that is connected already), else start one.

    Yields:
        How to map checks over a log: in threads here, or by tasks on a cluster that is not only here.

    Raises:
        ConfigurationError: the cluster cannot be reached or is too small.
        ServerError: the local cluster did not start.
    """
    with joined_ray(address, cpus=settings.workers * settings.cpus_per_worker + DATA_CPUS) as elsewhere:
        require_resources(settings)
        yield on_ray if elsewhere else in_threads


@contextmanager
def joined_ray(address: str | None = None, *, cpus: int | None = None) -> Iterator[bool]:
    """Be in a cluster for the length of the block; one that was joined before stays joined after it.

    Args:
        address: the cluster; default ``RAY_ADDRESS``, else a local one is started.
        cpus: logical CPUs of a local one; default those of the machine.

    Yields:
        Whether it was joined by its address, so that it may be more than this machine.

    Raises:
        ConfigurationError: the cluster cannot be reached.
        ServerError: the local cluster did not start.
    """
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        start_local_ray(num_cpus=cpus)
    else:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigurationError(f"Ray cluster {address} cannot be used: {reason}") from error
    try:
        yield address is not None
    finally:
        ray.shutdown()


def require_resources(settings: FitSettings) -> None:
    """Refuse to wait for CPUs or GPUs that the cluster does not have.

    Raises:
        ConfigurationError: with what is needed and what is there.
    """
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    need = settings.workers * settings.cpus_per_worker + DATA_CPUS
    if cpus < need:
        raise ConfigurationError(
            f"{settings.workers} workers with {settings.cpus_per_worker} CPUs each and {DATA_CPUS} CPU for "
            f"reading need {need} CPUs, the Ray cluster has {cpus:g}; use fewer workers or CPUs per worker"
        )
    if settings.gpu and gpus < settings.workers:
        raise ConfigurationError(
            f"{settings.workers} workers with a GPU each need {settings.workers} GPUs, the Ray cluster has "
            f"{gpus:g}; use fewer workers or leave out --gpu"
        )


def on_ray(check: Check, units: Sequence[Unit]) -> Iterator[UnitReport]:
    """Check units by Ray tasks, in order, with a bounded number of reports waiting.

    Raises:
        PutsError: what a task raised on purpose.
    """
    task = ray.remote(num_cpus=1, max_retries=2)(check)
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    limit = 2 * max(1, int(have.get("CPU", 1)))
    rest = iter(units)
    waiting = deque(task.remote(unit) for unit in islice(rest, limit))
    while waiting:
        try:
            report: UnitReport = ray.get(waiting.popleft())
        except RayTaskError as error:
            raise root_cause(error) from error
        yield report
        waiting.extend(task.remote(unit) for unit in islice(rest, 1))


def root_cause(error: BaseException) -> BaseException:
    """Our own error inside what Ray wrapped around it, or the error itself."""
    seen: list[BaseException] = []
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop()
        if any(current is other for other in seen):
            continue
        seen.append(current)
        if isinstance(current, PutsError) and not isinstance(current, RayTaskError):
            return current
        failures = getattr(current, "worker_failures", {}) or {}
        inner = [getattr(current, "cause", None), current.__cause__, *failures.values()]
        queue += [item for item in inner if isinstance(item, BaseException)]
    return error
