"""The sidecar as a Ray Serve application: ``serve.app:build`` for RayService and ``serve deploy``.

One hop only: the replica that takes the request calls both models itself. Operating values (scalarization,
control) travel in ``user_config``, so that changing them replaces no replica.
"""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve

from serve.api import create_app
from serve.config import SidecarConfig
from serve.decide import OperatingPoint
from serve.logs import configure_logs
from serve.metrics import MULTIPROC_VARIABLE
from serve.ray_ingress import hand_over
from serve.sidecar import Sidecar
from triton_models.errors import ConfigurationError

logger = logging.getLogger(__name__)

DEPLOYMENT = "Sidecar"


@ray_serve.deployment(name=DEPLOYMENT)
@ray_serve.ingress()
class SidecarDeployment:
    """One replica."""

    def __init__(self, config: dict[str, Any]) -> None:
        folder = os.environ.get(MULTIPROC_VARIABLE)
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._config = SidecarConfig.from_dict(config)
        configure_logs(self._config.logs)
        self._values: dict[str, Any] = user_config(self._config)
        self._app = create_app(self._config, self._make_sidecar)
        # Without effect where Ray's proxy takes the requests: nothing of ours stands in it.
        hand_over(self._app, max_ongoing_requests=self._config.max_ongoing_requests)

    def _make_sidecar(self, config: SidecarConfig) -> Sidecar:
        # Ray Serve hands over user_config before the application starts: a replica that is made after a
        # change begins with the changed values, not with those of its constructor.
        sidecar = Sidecar(config)
        sidecar.apply(self._values)
        spare_the_collector()
        return sidecar

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the application once the replica is made."""
        return self._app

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Swap the operating values in, whole. Bad ones are refused and the old ones stay.

        An exception here would cost the replica (FACTS.md), so a refusal is logged instead; the doors
        validate before they deploy.
        """
        try:
            OperatingPoint.parse(self._config.surface, user_config)
            self._values = user_config
            sidecar = getattr(self._app.state, "sidecar", None)
            if sidecar is not None:
                sidecar.apply(user_config)
        except ConfigurationError as error:
            logger.error("operating point refused, the old one stays in force: %s", error)


def spare_the_collector() -> None:
    """Leave what lives as long as the replica out of every later garbage collection.

    Ray, FastAPI, gRPC and NumPy are some 170,000 objects; a full collection that walks them stops the event
    loop for about 80 ms, and everybody in it. Requests make no cycles, so little is left to collect.
    """
    gc.collect()
    gc.freeze()


def user_config(config: SidecarConfig) -> dict[str, Any]:
    """The operating values of a configuration, as ``user_config``."""
    values = config.scalarization
    return {"scalarization": list(values) if values is not None else None, "control": config.control}


def build(args: dict[str, Any]) -> ray_serve.Application:
    """Application builder: ``args`` is the sidecar's configuration as plain data.

    Raises:
        ConfigurationError: the configuration is impossible; nothing is deployed.
    """
    config = SidecarConfig.from_dict(args, source="args of serve.app:build")
    environment = {}
    if config.metrics_dir is not None:
        # Before the replica's interpreter starts: prometheus_client looks once, when it is imported.
        environment[MULTIPROC_VARIABLE] = config.metrics_dir
    deployment: Any = SidecarDeployment
    deployment = deployment.options(
        num_replicas=config.num_replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        user_config=user_config(config),
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": environment}},
    )
    application: ray_serve.Application = deployment.bind(config.to_dict())
    return application
