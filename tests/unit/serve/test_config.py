from __future__ import annotations

import json
from typing import Any

import pytest

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
