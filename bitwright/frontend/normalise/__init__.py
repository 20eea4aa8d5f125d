"""Normalisation: the ordered list of rewrites that turns any supported graph into canonical ONNX.

Three stages: spelling that carries no meaning goes first (``PREPARE``); then everything that depends on lengths and
positions only is replaced by what it means (``structure.lift``); then patterns of primitives become the canonical ops
(``REWRITES``), until none applies.
"""

from __future__ import annotations

import onnx_ir as ir

from bitwright.errors import UnsupportedError
from bitwright.frontend.annotate import annotate
from bitwright.frontend.graph import BITWRIGHT_DOMAIN, OPSET, Editor, sweep
from bitwright.frontend.lift import lift
from bitwright.frontend.lift.survey import SMALLEST_CONTEXT
from bitwright.frontend.normalise import (
    attention,
    attention_primitives,
    batch_axis,
    constants,
    empty_operands,
    float_cast,
    fold_weights,
    gelu,
    gemm,
    identity,
    layer_norm,
    neutral,
    norm_gain,
    reduce_axes,
    reshaping,
    rms_norm,
    rotary,
    sequence,
    token_rows,
    transposing,
)
from bitwright.frontend.normalise.rewrite import Rewrite, run_to_fixpoint
from bitwright.frontend.roles import Roles
from bitwright.frontend.widen import widen

OLDEST_OPSET, NEWEST_OPSET = 13, 24

PREPARE: tuple[Rewrite, ...] = (
    constants.REWRITE,
    identity.REWRITE,
    float_cast.REWRITE,
    sequence.REWRITE,
)

# Ops whose meaning differs between the source's opset and 23.
UPGRADE: tuple[Rewrite, ...] = (reduce_axes.REWRITE,)

REWRITES: tuple[Rewrite, ...] = (
    float_cast.REWRITE,  # again: only now are all types known
    reshaping.REWRITE,
    transposing.REWRITE,
    batch_axis.REWRITE,
    empty_operands.REWRITE,
    neutral.REWRITE,
    gemm.REWRITE,
    fold_weights.REWRITE,
    token_rows.REWRITE,
    rms_norm.REWRITE,
    layer_norm.REWRITE,
    norm_gain.REWRITE,
    gelu.REWRITE,
    rotary.REWRITE,
    attention_primitives.REWRITE,
)

# Last: only now do keys and values stand as the cache, the repetition and the transposes leave them.
ATTENTION: tuple[Rewrite, ...] = (attention.REWRITE, *REWRITES)


def normalise(model: ir.Model, context: int) -> Roles:
    """Bring ``model`` to canonical form in place, all but its interface (``interface.py``); tables get ``context``
    rows.

    Raises:
        UnsupportedError: naming the node, op and domain that is not understood.
    """
    version = model.opset_imports.get("", 0)
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise UnsupportedError(
            f"opset {version} of ai.onnx is not supported",
            where="opset_import",
            limit=f"opsets {OLDEST_OPSET} to {NEWEST_OPSET}",
            remedy="export the model again at opset 17 or later",
        )
    if context < SMALLEST_CONTEXT:
        raise UnsupportedError(f"a context of {context} positions is too small", limit=f"at least {SMALLEST_CONTEXT}")
    widen(model)
    roles = Roles(model)
    editor = Editor(model)
    run_to_fixpoint(PREPARE, editor)
    sweep(model)
    lift(model, roles, context)
    roles = Roles(model)  # lifting may have added position_ids
    annotate(model, roles)
    run_to_fixpoint(UPGRADE, editor)
    model.opset_imports[""] = OPSET
    model.opset_imports[BITWRIGHT_DOMAIN] = 1
    run_to_fixpoint(REWRITES, editor)
    run_to_fixpoint(ATTENTION, editor)
    sweep(model)
    return roles
