"""Settings of the decision log, a section of :class:`serve.config.SidecarConfig`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIB = 1024**2

_URI = re.compile(r"^[a-z][a-z0-9+.-]*://")


class DecisionLogConfig(BaseModel):
    """What is logged, where to, and how much of the machine it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Annotated[str, Field(min_length=1)]
    """Where segments go: a local folder, or the URI of any pyarrow filesystem (``s3://``, ``gs://`` …).
    Credentials belong into the environment, as the filesystem's own client reads them, not into the URI."""
    spool: str | None = None
    """Local folder of what is not a segment yet, shared by the replicas of a node; it must survive their
    restarts, and be on a disk with ``flock``. None: ``_spool`` inside ``folder``, which must be local."""
    sample_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """Share of the requests that do not explore; explorations are all logged."""
    user_ids: Literal["raw", "hashed"] = "raw"
    """``hashed``: BLAKE2b keyed with the salt in the environment variable ``user_salt_variable``."""
    user_salt_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "PUTS_USER_SALT"
    """Its *name* is configuration; the salt itself is a secret (1 to 64 bytes) and stays out of it."""
    queue_records: Annotated[int, Field(ge=1, le=10_000_000)] = 50_000
    """Records in memory, per replica; one more is dropped."""
    queue_bytes: Annotated[int, Field(ge=1024)] = 64 * MIB
    """Memory of those records, per replica."""
    flush_s: Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False)] = 0.25
    """How often records go to the spool. Below one second, since that is what ``kill -9`` may cost."""
    fsync_s: Annotated[float, Field(ge=0.01, le=600, allow_inf_nan=False)] | None = 1.0
    """How often the spool is forced to the disk, for crashes of the *machine*. None: left to the kernel."""
    segment_rows: Annotated[int, Field(ge=1)] = 200_000
    segment_bytes: Annotated[int, Field(ge=1024)] = 64 * MIB
    """Size of the spool file that becomes a segment."""
    segment_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 600.0
    """Age at which a file becomes a segment even if it is small. The hour ends it in any case."""
    spool_bytes: Annotated[int, Field(ge=1024)] = 1024 * MIB
    """Largest spool of the node, for when the storage is away; more is dropped."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 128 * MIB
    """Below this much free space on the spool's disk, records are dropped: segments need room to be made."""
    retry_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 1.0
    """First pause after the storage failed; it doubles up to ``retry_max_s``."""
    retry_max_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 30.0
    sweep_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 30.0
    """How often the spool is searched for files of processes that have died."""
    close_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 5.0
    """At shutdown: how long segments are still made. What is left, the next process finishes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_uri and self.spool is None:
            raise ValueError(f"folder {self.folder} is not local: say where the local spool is")
        if self.spool is not None and _URI.match(self.spool):
            raise ValueError(f"spool must be a local folder, got {self.spool}")
        if self.retry_max_s < self.retry_s:
            raise ValueError(f"retry_max_s {self.retry_max_s} is below retry_s {self.retry_s}")
        return self

    @property
    def is_uri(self) -> bool:
        """Whether segments go through a pyarrow filesystem."""
        return _URI.match(self.folder) is not None

    @property
    def spool_folder(self) -> Path:
        """Where the spool is. Names with an underscore are not part of a log, so readers pass it by."""
        return Path(self.spool) if self.spool is not None else Path(self.folder) / "_spool"

    @property
    def shown_folder(self) -> str:
        """The folder as it may be logged: without user, password and query."""
        parts = re.fullmatch(r"(?s)([a-z][a-z0-9+.-]*://)(?:[^/]*@)?([^?]*)(?:\?.*)?", self.folder)
        return parts[1] + parts[2] if parts and self.is_uri else self.folder
