"""Parts of the run as JSON files: what lies there is not run again.

Every file begins with what it depends on. A file that was made with other settings is refused rather than
mixed with new ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triton_models.errors import BenchmarkError
from triton_models.files import write_json

Part = dict[str, Any]


def part(file: Path, identity: dict[str, object], make: Callable[[], Part]) -> tuple[Part, bool]:
    """The part in ``file``, and whether it had to be made.

    Raises:
        BenchmarkError: the file is damaged, or was made with other settings.
    """
    if not file.exists():
        found = {"made_with": identity, **make()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
        return found, True
    found = read_part(file)
    differing = sorted(
        name for name in identity | found["made_with"] if identity.get(name) != found["made_with"].get(name)
    )
    if differing:
        raise BenchmarkError(
            f"{file} was made with another {', '.join(differing)}; use another --out, or remove it"
        )
    return found, False


def read_part(file: Path) -> Part:
    """A part on disk.

    Raises:
        BenchmarkError: the file is damaged.
    """
    try:
        found: Part = json.loads(file.read_text(encoding="utf-8"))
        found["made_with"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(f"{file}: not a part ({error}); remove it to run it again") from error
    return found
