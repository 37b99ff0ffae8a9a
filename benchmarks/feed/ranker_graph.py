"""The simulated feed's reference ranker as an ONNX graph: somebody else's ranker, for the sidecar to call.

The graph computes what :class:`benchmarks.feed.population.RankerConstants` says, with the item table
inside, so a request carries candidate ids and nothing else about items. B batch, C candidates, H heads.

Inputs ``user_embedding`` FP32 [B, D], ``context`` INT64 [B, fields] (0 = unknown, which counts as no
effect), ``candidate_ids`` INT64 [B, C]; output ``scores`` FP32 [B, C, H] in the order of
``surface.heads``. Opset 17 and IR 9: every ONNX Runtime that Triton 24.10 and later carries loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.feed import config as c
from benchmarks.feed.world import World
from triton_models.surface import Surface
from triton_models.tensors import TensorSpec

OPSET, IR_VERSION = 17, 9
RANKER = "ranker"
"""Name of the ranker's Triton model."""
MAX_BATCH_SIZE = 16


def ranker_inputs(surface: Surface) -> tuple[TensorSpec, ...]:
    """Inputs of the ranker, without the batch dimension."""
    return (
        TensorSpec("user_embedding", "FP32", (surface.state.user_embedding,)),
        TensorSpec("context", "INT64", (len(surface.state.context),)),
        TensorSpec("candidate_ids", "INT64", (-1,)),
    )


def ranker_outputs(surface: Surface) -> tuple[TensorSpec, ...]:
    """Output of the ranker, without the batch dimension."""
    return (TensorSpec("scores", "FP32", (-1, len(surface.heads))),)


class _Graph:
    """Nodes and constants under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: npt.ArrayLike, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def sum(self, parts: list[str], output: str) -> str:
        return self.add("Sum", parts, output)


def build_ranker_onnx(world: World) -> bytes:
    """The world's ranker as a serialised ONNX model."""
    g, surface, ranker = _Graph(), world.surface, world.ranker
    heads = [c.EVENTS.index(head) for head in surface.heads]
    # The embedding is (traits, noise) @ R with R orthogonal, so @ Rᵀ gives the traits back.
    g.constant("unrotate", world.users.rotation.T[:, : c.USER_TRAITS])
    z = g.add("MatMul", ["user_embedding", "unrotate"], "z")
    base, prior = [], []
    base.append(g.add("MatMul", [z, g.constant("level", ranker.level_ZH[:, heads])], "z_level"))
    prior.append(g.add("MatMul", [z, g.constant("tilt", ranker.tilt_ZS)], "z_tilt"))
    for f, (name, words) in enumerate(surface.state.context.items()):
        place = list(c.CONTEXT).index(name)
        order = [c.CONTEXT[name].index(word) for word in words]
        index = g.constant(f"field_{name}", f, np.int64)
        code = g.add("Gather", ["context", index], f"code_{name}", axis=1)
        for what, table, parts in (
            ("base", ranker.context_H[place][order][:, heads], base),
            ("prior", ranker.context_S[place][order], prior),
        ):
            known = np.concatenate([np.zeros((1, table.shape[1]), np.float32), table])
            parts.append(g.add("Gather", [g.constant(f"{what}_table_{name}", known), code], f"{what}_{name}"))
    base_BH = g.sum([*base, g.constant("bias", ranker.bias_H[heads])], "base")
    logit_BS = g.sum([*prior, g.constant("prior", ranker.prior_S)], "logit")
    prior_BS = g.add("Softmax", [logit_BS], "intent", axis=1)
    tau_B1 = _contrast(g, z, world)
    scale_BH = _mean_multiplier(g, tau_B1, prior_BS, world, heads)
    _scores(g, z, base_BH, tau_B1, scale_BH, world, heads)
    return _serialise(g, surface)


def _contrast(g: _Graph, z: str, world: World) -> str:
    """τ = contrast_scale · exp(contrast_spread · z_contrast), [B, 1]."""
    g.constant("contrast_at", [c.CONTRAST], np.int64)
    trait = g.add("Gather", [z, "contrast_at"], "z_contrast", axis=1)
    spread = g.add("Mul", [trait, g.constant("contrast_spread", world.ranker.contrast_spread)], "spread")
    power = g.add("Exp", [spread], "power")
    return g.add("Mul", [power, g.constant("contrast_scale", world.ranker.contrast_scale)], "tau")


def _mean_multiplier(g: _Graph, tau_B1: str, prior_BS: str, world: World, heads: list[int]) -> str:
    """ceiling_h Σ_s π_s exp(τ intent_hs), [B, H]."""
    g.constant("last", [2], np.int64)
    g.constant("middle", [1], np.int64)
    tau_B11 = g.add("Unsqueeze", [tau_B1, "last"], "tau_3d")
    effect_1HS = g.constant("intent_effect", world.ranker.intent_HS[heads][None])
    exponent = g.add("Mul", [tau_B11, effect_1HS], "exponent")
    multiplier = g.add("Exp", [exponent], "multiplier")  # [B, H, S]
    weighted = g.add("Mul", [multiplier, g.add("Unsqueeze", [prior_BS, "middle"], "intent_3d")], "weighted")
    mean = g.add("ReduceSum", [weighted, "last"], "mean", keepdims=0)
    return g.add("Mul", [mean, g.constant("ceiling", world.ranker.ceiling_H[heads])], "scale")


def _scores(
    g: _Graph, z: str, base_BH: str, tau_B1: str, scale_BH: str, world: World, heads: list[int]
) -> None:
    """σ(base + taste·match + τ·kind + own) · scale, [B, C, H]."""
    traits = world.items.traits
    item_taste = g.constant("item_taste", traits[:, : c.TASTES])
    own = g.constant("item_own", world.items.quality_logit[:, heads])
    kind = g.constant("item_kind", traits[:, c.TASTES : c.TASTES + 1])
    taste_BCT = g.add("Gather", [item_taste, "candidate_ids"], "candidate_taste")
    own_BCH = g.add("Gather", [own, "candidate_ids"], "candidate_own")
    kind_BC1 = g.add("Gather", [kind, "candidate_ids"], "candidate_kind")
    g.constant("taste_at", list(range(c.TASTES)), np.int64)
    user_BT = g.add("Gather", [z, "taste_at"], "z_taste", axis=1)
    match = g.add("MatMul", [taste_BCT, g.add("Unsqueeze", [user_BT, "last"], "taste_3d")], "match")
    liked = g.add("Mul", [match, g.constant("taste", world.ranker.taste_H[heads])], "liked")
    slope_BH = g.add("Mul", [tau_B1, g.constant("kind", world.ranker.kind_H[heads])], "slope")
    leaning = g.add("Mul", [kind_BC1, g.add("Unsqueeze", [slope_BH, "middle"], "slope_3d")], "leaning")
    base_B1H = g.add("Unsqueeze", [base_BH, "middle"], "base_3d")
    # Not the Sigmoid operator: ONNX Runtime's approximation is off by 1 % where the chance is tiny.
    logits = g.sum([base_B1H, liked, leaning, own_BCH], "logits")
    odds = g.add("Exp", [g.add("Neg", [logits], "minus")], "odds")
    whole = g.add("Add", [odds, g.constant("one", 1.0)], "whole")
    g.add("Div", [g.add("Unsqueeze", [scale_BH, "middle"], "scale_3d"), whole], "scores")


def _serialise(g: _Graph, surface: Surface) -> bytes:
    types = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}

    def info(spec: TensorSpec) -> Any:
        shape = ["batch", *("candidates" if size == -1 else size for size in spec.shape)]
        return helper.make_tensor_value_info(spec.name, types[spec.datatype], shape)

    inputs = [info(spec) for spec in ranker_inputs(surface)]
    outputs = [info(spec) for spec in ranker_outputs(surface)]
    graph = helper.make_graph(g.nodes, "reference_ranker", inputs, outputs, g.constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="prl-puts"
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def publish_ranker(
    world: World, repository: Path, *, backend: Literal["python", "onnxruntime"] = "python", keep: int = 3
) -> int:
    """Publish a world's reference ranker to a Triton repository; the version."""
    from triton_models.repository import publish_model

    surface = world.surface
    words = ",".join(str(len(values)) for values in surface.state.context.values())
    return publish_model(
        repository,
        name=RANKER,
        onnx_bytes=build_ranker_onnx(world),
        inputs=ranker_inputs(surface),
        outputs=ranker_outputs(surface),
        max_batch_size=MAX_BATCH_SIZE,
        backend=backend,
        input_rules={"candidate_ids": f"codes:{world.config.items - 1}", "context": f"codes:{words}"},
        parameters={
            "heads": ",".join(surface.heads),
            "items": str(world.config.items),
            "seed": str(world.config.seed),
            "surface_fingerprint": surface.fingerprint,
        },
        keep=keep,
    )
