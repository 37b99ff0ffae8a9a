from __future__ import annotations

import json
from typing import Any

import pytest

from serve.cluster import base_urls, ingress_environment, is_direct
from serve.config import SidecarConfig, read_settings
from tests.unit.serve.support import SURFACE, config
from triton_models.errors import ConfigurationError


def test_survives_its_own_plain_data() -> None:
    settings = config()
    assert SidecarConfig.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"value_network": {"addresses": []}}, "addresses"),
        ({"value_network": {"addresses": ["no port"]}}, "addresses"),
        ({"value_network": {"budget_ms": 0}}, "budget_ms"),
        ({"value_network": {"budget_ms": 20_000, "rpc_timeout_s": 10}}, "rpc_timeout_s"),
        ({"value_network": {"max_in_flight": 0}}, "max_in_flight"),
        ({"value_network": {"budget": 3}}, "budget"),
        ({"ranker": {"heads": ["repin", "p2p"]}}, "click"),
        ({"ranker": {"heads": ["repin", "repin", "p2p", "click", "hide"]}}, "unique"),
        ({"ranker": {"state_inputs": {"nose": "x"}}}, "nose"),
        ({"ranker": {"timeout_ms": 31_000}}, "timeout_ms"),
        ({"scalarization": [1.0]}, "scalarization"),
        ({"scalarization": [-1.0, 2.0]}, "scalarization"),
        ({"http": {"port": 70_000}}, "port"),
        ({"surface": {"name": "x"}}, "surface"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(**changes)
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


def test_surface_path_is_relative_to_the_file(tmp_path: Any) -> None:
    (tmp_path / "s.yaml").write_text(SURFACE.to_yaml())
    (tmp_path / "c.yaml").write_text("surface: s.yaml\nvalue_network: {addresses: ['a:1']}\n")
    assert SidecarConfig.from_dict(read_settings(tmp_path / "c.yaml")).surface == SURFACE
    (tmp_path / "bad.yaml").write_text("surface: missing.yaml\n")
    with pytest.raises(ConfigurationError, match=r"missing\.yaml"):
        read_settings(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("http", "replicas", "ray_address", "direct"),
    [
        ({}, 1, None, True),
        ({}, 2, None, False),
        ({"ingress": "proxy"}, 1, None, False),
        ({"ingress": "direct"}, 3, None, True),
        ({}, 1, "ray:10001", False),
    ],
)
def test_who_takes_the_requests(
    http: dict[str, Any],
    replicas: int,
    ray_address: str | None,
    direct: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_DIRECT_INGRESS", raising=False)
    made = config(http=http, num_replicas=replicas)
    assert is_direct(made, ray_address=ray_address) is direct
    urls = base_urls(made, direct=direct)
    assert urls == tuple(f"http://127.0.0.1:{8000 + i}" for i in range(replicas if direct else 1))
    environment = ingress_environment(made, direct=direct)
    ports = [int(environment[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX")]
    assert ports == [8000, 8000 + replicas]
    assert ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in environment) is direct


def test_direct_ingress_cannot_be_had_on_a_cluster_of_somebody_elses() -> None:
    with pytest.raises(ConfigurationError, match="--ray-address"):
        is_direct(config(http={"ingress": "direct"}), ray_address="ray:10001")
