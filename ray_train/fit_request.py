"""What a fit was asked for, and the folder that it may use: what ``--resume`` goes by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ray_train.fit_plan import Plan
from ray_train.settings import FitSettings
from triton_models.errors import RunError
from triton_models.network_config import NetworkConfig
from triton_models.runs import MANIFEST, new_run_id
from triton_models.surface import Surface

REQUEST = "fit.json"


class FitRequest(BaseModel):
    """What was asked for; written first, compared on ``--resume``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    logs: str
    surface_fingerprint: str
    settings: FitSettings
    network: NetworkConfig
    windows: tuple[str, str, str]
    """Start of training, start of the hold-out, end of the hold-out."""
    rows: tuple[int, int]
    """Good rows of training and hold-out."""

    @field_validator("settings", mode="before")
    @classmethod
    def _of_before(cls, settings: Any) -> Any:
        """A fit that was begun before there was a weight of counts had none; it must not go on with one."""
        return {"count_weight": 0.0, **settings} if isinstance(settings, dict) else settings


def earlier_request(folder: Path, *, resume: bool) -> FitRequest | None:
    """What was asked for in the interrupted fit of ``folder``, if it is to be resumed.

    Raises:
        RunError: the folder cannot be used, or holds nothing to resume.
    """
    request = folder / REQUEST
    try:
        if (folder / MANIFEST).exists():
            raise RunError(f"{folder}: holds a finished run; name another --out")
        if not resume:
            if folder.exists() and not folder.is_dir():
                raise RunError(f"{folder}: is a file; name another --out")
            if folder.exists() and any(folder.iterdir()):
                hint = "an interrupted fit; go on with --resume or" if request.exists() else "other files;"
                raise RunError(f"{folder}: holds {hint} name another --out")
            return None
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        return FitRequest.model_validate_json(request.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{folder}: holds no interrupted fit to resume; leave out --resume") from error
    except (OSError, ValidationError) as error:
        raise RunError(f"{request}: is damaged; name another --out") from error


def _not_writable(folder: Path, error: OSError) -> RunError:
    return RunError(f"{folder}: cannot be written ({error.strerror or error}); name another --out")


def request_of(
    earlier: FitRequest | None,
    surface: Surface,
    logs: str | Path,
    settings: FitSettings,
    network: NetworkConfig,
    plan: Plan,
) -> FitRequest:
    """What is asked for now; on resume it must be the earlier one.

    Raises:
        RunError: naming what differs.
    """
    split = plan.split
    request = FitRequest(
        run_id=earlier.run_id if earlier else new_run_id(surface),
        logs=str(logs),
        surface_fingerprint=surface.fingerprint,
        settings=settings,
        network=network,
        windows=(*split.train_window, split.holdout_window[1]),
        rows=(plan.rows_train + plan.rows_selection, plan.rows_holdout),
    )
    if earlier is None:
        return request
    changed = [
        f"{name} ({was!r} then, {now!r} now)"
        for name, (was, now) in earlier.settings.differences(settings).items()
    ]
    for name in ("surface_fingerprint", "network", "windows", "rows"):
        if getattr(earlier, name) != getattr(request, name):
            changed.append("the log" if name in ("windows", "rows") else name.replace("_", " "))
    if changed:
        what = ", ".join(dict.fromkeys(changed))
        raise RunError(f"cannot resume {earlier.run_id}: {what} changed since; start anew in another --out")
    return request


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Make the folder before anything else is begun; on an error, those that were made and stayed empty go.

    Raises:
        RunError: it cannot be made or written.
    """
    made: list[Path] = []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        _remove_empty(made)
        raise _not_writable(folder, error) from error
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, up to the first that is not empty."""
    with suppress(OSError):
        for folder in folders:
            if folder.exists():
                folder.rmdir()
