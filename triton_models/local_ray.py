"""A Ray of our own on this machine, started the one way that holds on a busy machine."""

from __future__ import annotations

import logging
from typing import Any

from triton_models.errors import ServerError

logger = logging.getLogger(__name__)

TRIES = 2


def start_local_ray(**options: Any) -> None:
    """Start a local Ray, quiet and without dashboard unless ``options`` of ``ray.init`` say otherwise.

    Ray gives its own processes 30 s to come up, which a busy machine exceeds, and then raises a bare
    ``Exception``; so what it left behind is shut down and it is started once more.

    Raises:
        ServerError: it did not start the second time either.
    """
    import ray

    # It says that the cluster asks for a token, and how to opt out of that, which nobody should.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    for left in reversed(range(TRIES)):
        try:
            ray.init(**{**quiet, **options})
            return
        except Exception as error:
            ray.shutdown()
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            if not left:
                raise ServerError(f"a local Ray did not start: {reason}") from error
            logger.warning("a local Ray did not start (%s); trying once more", reason)
