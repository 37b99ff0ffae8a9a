"""Sizes and parts of the value network; plain data, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Width = Annotated[int, Field(ge=1, le=4096)]


class NetworkConfig(BaseModel):
    """Sizes of the value network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: Literal["learned", "plain"] = "learned"
    """``learned`` is the paper's, or cheaper parts of it; ``plain`` has no parameters: the request as it is,
    its history added up by age (:class:`triton_models.plain_encoder.PlainEncoder`), for heads ``committee``
    and ``grid``. The widths of context, history, user and state are those of ``learned``."""
    context_width: Width = 8
    """Embedding width of each context field."""
    history_encoder: Literal["transformer", "pooling"] = "transformer"
    """``transformer`` is the paper's; ``pooling`` reads the history through a few learned queries."""
    history_width: Width = 32
    """Width of the encoded history, and of the Transformer, H."""
    history_layers: Annotated[int, Field(ge=0, le=12)] = 1
    history_heads: Annotated[int, Field(ge=1, le=32)] = 2
    history_pools: Annotated[int, Field(ge=1, le=64)] = 8
    """Learned queries of ``pooling``, K."""
    user_width: Width = 32
    state_width: Width = 64
    """Width of the state vector, S."""
    action_head: Literal["backbone", "grid", "committee"] = "backbone"
    """``backbone`` is the paper's: state and action through the backbone, once per action; ``grid`` sends
    the state alone through the backbone, whose last layer has one output per objective and grid action;
    ``committee`` is several small networks over the plain encoder (:mod:`triton_models.committee`)."""
    members: Annotated[int, Field(ge=2, le=64)] = 8
    """Networks of a committee."""
    action_width: Width = 16
    backbone_width: Width = 128
    backbone_blocks: Annotated[int, Field(ge=1, le=8)] = 3

    @model_validator(mode="after")
    def _parts_fit(self) -> NetworkConfig:
        if self.action_head == "committee" and self.encoder != "plain":
            raise ValueError("action_head committee needs encoder plain")
        if self.encoder == "plain" and self.action_head == "backbone":
            raise ValueError("encoder plain needs action_head committee or grid")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> NetworkConfig:
        if self.history_width % self.history_heads:
            raise ValueError(
                f"history_width ({self.history_width}) must be a multiple of "
                f"history_heads ({self.history_heads})"
            )
        return self
