"""Reading YAML written by people: duplicate keys are refused, every failure is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from triton_models.errors import SurfaceError


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence; a surface with two must be refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} appears twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


def load_yaml(path: str | Path) -> object:
    """Read one YAML file, refusing duplicate keys.

    Raises:
        SurfaceError: the file is missing, unreadable or not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SurfaceError(f"{path}: cannot be read ({error}); expected a YAML file") from error
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (
        Exception
    ) as error:  # an impossible date, too deep a nest; !!int "" is an IndexError of the library
        reason = " ".join(str(error).split())
        raise SurfaceError(f"{path}: not valid YAML: {reason}") from error
