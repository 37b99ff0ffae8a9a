"""User ids as they are written into the decision log."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from hashlib import blake2b

from serve.decision_log_config import DecisionLogConfig
from triton_models.errors import ConfigurationError

Rename = Callable[[str], str]
"""User id → what is written of it."""

MAX_SALT = 64


def pseudonym(user_id: str, salt: bytes) -> str:
    """A user id that only the holder of the salt can recompute: BLAKE2b keyed with it, 128 bits, hex."""
    return blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16, key=salt).hexdigest()


def make_rename(config: DecisionLogConfig) -> Rename | None:
    """How user ids are written; None: as they came.

    Raises:
        ConfigurationError: they are to be hashed and there is no salt.
    """
    if config.user_ids == "raw":
        return None
    salt = os.environ.get(config.user_salt_variable, "").encode()
    if not 1 <= len(salt) <= MAX_SALT:
        raise ConfigurationError(
            f"decision_log.user_ids is hashed: expected a salt of 1 to {MAX_SALT} bytes in the environment "
            f"variable {config.user_salt_variable}, got {len(salt)} bytes"
        )
    return partial(pseudonym, salt=salt)
