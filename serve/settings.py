"""From the options of ``python -m serve up`` to one checked configuration; nothing is started here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.config import SidecarConfig, read_settings
from serve.policy_settings import access_settings, policy_store_settings
from serve.pseudonyms import make_rename
from serve.server_link import require_fitting_model
from triton_models.errors import ConfigurationError, RepositoryError
from triton_models.frontier import Frontier, load_frontier
from triton_models.repository import read_model
from triton_models.surface import Surface, load_surface
from triton_models.tensors import VALUE_NETWORK

UNKNOWN_ADDRESS = "127.0.0.1:1"
"""Stands for a server that is still to be started."""


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Configuration as plain data: the file's, then what the command line says.

    Raises:
        PutsError: options, files and repositories that do not fit together; one line.
    """
    data: dict[str, Any] = read_settings(options.config) if options.config else {}
    network, http = _section(options, data, "value_network"), _section(options, data, "http")
    ranker = _section(options, data, "ranker") or None
    if options.triton or options.repository:
        network["addresses"] = [options.triton or UNKNOWN_ADDRESS]
    if "addresses" not in network:
        raise ConfigurationError("where is the value network? say --triton HOST:PORT or --repository REPO")
    if options.ranker or options.ranker_repository:
        ranker = {**(ranker or {}), "addresses": [options.ranker or UNKNOWN_ADDRESS]}
    if options.budget_ms is not None:
        network["budget_ms"] = options.budget_ms
    frontier = load_frontier(options.frontier) if options.frontier else None
    surface = _surface(options, data, frontier, str(network.get("model", VALUE_NETWORK)))
    data |= {"surface": surface.to_dict(), "value_network": network, "ranker": ranker}
    if frontier is not None:
        data["expected_run_id"] = frontier.run.run_id
    scalarization = _scalarization(options, frontier)
    if scalarization is not None:
        data["scalarization"] = scalarization
    if options.no_control:
        data["control"] = False
    listen = {"host": options.host, "port": options.port}
    data["http"] = http | {name: value for name, value in listen.items() if value is not None}
    if options.replicas is not None:
        data["num_replicas"] = options.replicas
    data["access"] = access_settings(options, _section(options, data, "access"))
    store = _section(options, data, "policy_store")
    if options.policy_store or store:
        data["policy_store"] = policy_store_settings(
            store | ({"url": options.policy_store} if options.policy_store else {})
        )
    data["decision_log"] = _decision_log(options, data)
    config = SidecarConfig.from_dict(data, source=str(options.config) if options.config else "options")
    if config.decision_log is not None:
        make_rename(config.decision_log)  # a missing salt is told now, not by a replica that does not start
    return data


def _section(options: argparse.Namespace, data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of the file; an absent or empty one is an empty mapping."""
    section = data.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ConfigurationError(f"{options.config}: {name}: expected a mapping of settings, got {section!r}")
    return dict(section)


def _decision_log(options: argparse.Namespace, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section, its local folders made absolute: replicas are started elsewhere.

    In a file they are relative to the file, as a surface's path is; on the command line to where we are.
    """
    section = _section(options, data, "decision_log")
    base = options.config.parent if options.config else Path()
    for name in ("folder", "spool"):
        if isinstance(section.get(name), str) and "://" not in section[name]:
            section[name] = str((base / section[name]).resolve())
    if options.decision_log:
        given = options.decision_log
        section["folder"] = given if "://" in given else str(Path(given).resolve())
    return section or None


def _surface(
    options: argparse.Namespace, data: Mapping[str, Any], frontier: Frontier | None, model: str
) -> Surface:
    parameters = _repository_parameters(options.repository, model) if options.repository else None
    surface: Surface
    if options.surface:
        surface = load_surface(options.surface)
    elif frontier is not None:
        surface = frontier.surface_object
    elif data.get("surface"):
        surface = Surface.from_dict(data["surface"], source=str(options.config))
    elif parameters and "surface" in parameters:
        surface = _parse_surface(parameters["surface"], options.repository)
    else:
        raise ConfigurationError("which control surface? say --surface FILE or --frontier FRONTIER")
    if parameters is not None:
        require_fitting_model(surface, parameters, where=str(options.repository))
    return surface


def _repository_parameters(repository: Path, model: str) -> Mapping[str, str]:
    published = read_model(repository, model)
    if published is None:
        raise RepositoryError(
            f"{repository}: there is no model {model}; make one with python -m triton_models export"
        )
    return published.parameters


def _parse_surface(text: str, repository: Path) -> Surface:
    try:
        return Surface.from_dict(json.loads(text), source=f"surface in {repository}")
    except ValueError as error:
        raise RepositoryError(f"{repository}: the model's surface is not JSON: {error}") from error


def _scalarization(options: argparse.Namespace, frontier: Frontier | None) -> list[float] | None:
    if options.scalarization:
        try:
            return [float(part) for part in options.scalarization.split(",")]
        except ValueError as error:
            raise ConfigurationError(
                f"--scalarization: expected numbers like 0.8,0.2, got {options.scalarization!r}"
            ) from error
    if options.operating_point and frontier is None:
        raise ConfigurationError("--operating-point names a candidate of a frontier; say --frontier as well")
    if frontier is None:
        return None
    label = options.operating_point or ("knee" if "knee" in frontier.candidates else None)
    return list(frontier.candidate(label).scalarization) if label else None
