"""A torch language model -> ONNX at opset 23, cache in and out."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

from bitwright.errors import BitwrightError, UnsupportedError
from bitwright.frontend.graph import OPSET

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

EXAMPLE_TOKENS, EXAMPLE_CACHED = 3, 5
LONGEST = 1 << 24  # tokens; the exporter asks for a bound


@contextmanager
def quiet() -> Iterator[None]:
    """Silence remarks about optional packages and deprecations, and progress bars that are not ours."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "transformers")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def export_decoder(model: Any, opset: int = OPSET) -> ir.Model:
    """Export a transformers causal language model.

    Args:
        model: in evaluation mode, float32, with the attention implementation already chosen.
        opset: of the result; 23 keeps attention as one op.

    Returns: inputs ``input_ids``, ``attention_mask``, ``position_ids`` int64 and ``past_key_values.{i}.key|value``
        [1, kv heads, past, size]; outputs ``logits`` [1, tokens, vocabulary] and ``present.{i}.key|value``.
        Initializers keep the names of the module's parameters, and share its memory.

    Raises:
        UnsupportedError: where the model cannot be exported.
    """
    import torch
    from transformers.cache_utils import DynamicCache

    class WithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor,
            past: list[torch.Tensor],
        ) -> tuple[torch.Tensor, ...]:
            # A cache without a config keeps all positions of sliding layers: windows are a matter of the mask here.
            cache = DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            result = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            return (result.logits, *(t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)))

    n, p = EXAMPLE_TOKENS, EXAMPLE_CACHED
    shapes = _cache_shapes(model)
    # Example contents are distinct, so that the exporter does not mistake equal tensors for one.
    past = [torch.full((1, heads, p, size), float(i + 1)) for i, (heads, size) in enumerate(shapes)]
    # One symbol for all caches: with one each, tracing spends most of its time proving shapes equal.
    tokens, cached = (torch.export.Dim(name, min=2, max=LONGEST) for name in ("tokens", "cached"))
    names = [f"{layer}.{part}" for layer in range(len(past) // 2) for part in ("key", "value")]
    return _export(
        WithCache(),
        {
            "input_ids": torch.arange(n)[None] % model.config.get_text_config().vocab_size,
            "attention_mask": torch.ones(1, n + p, dtype=torch.int64),
            "position_ids": torch.arange(p, p + n)[None],
            "past": past,
        },
        {
            "input_ids": {1: tokens},
            "attention_mask": {1: torch.export.Dim.DYNAMIC},
            "position_ids": {1: tokens},
            "past": [{2: cached} for _ in past],
        },
        ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
        ["logits", *(f"present.{name}" for name in names)],
        opset,
    )


def export_encoder(model: Any, opset: int = OPSET) -> ir.Model:
    """Export a transformers encoder: ``input_ids``, ``attention_mask`` and, where the model has them,
    ``token_type_ids`` -> ``hidden`` [1, tokens, width].

    Raises:
        UnsupportedError: where the model cannot be exported.
    """
    import torch

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = model

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
        ) -> torch.Tensor:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state  # type: ignore[no-any-return]

    n = EXAMPLE_TOKENS
    inputs = {"input_ids": torch.arange(n)[None], "attention_mask": torch.ones(1, n, dtype=torch.int64)}
    if getattr(model.config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.zeros(1, n, dtype=torch.int64)
    moving = {name: {1: torch.export.Dim.DYNAMIC} for name in inputs}
    return _export(Hidden(), inputs, moving, list(inputs), ["hidden"], opset)


def _cache_shapes(model: Any) -> list[tuple[int, int]]:
    """(kv heads, size) of every cached tensor, keys and values in turn, as the model itself fills a cache."""
    import torch
    from transformers.cache_utils import DynamicCache

    with torch.no_grad():
        result = model(input_ids=torch.zeros(1, 2, dtype=torch.int64), past_key_values=DynamicCache(), use_cache=True)
    layers = getattr(result.past_key_values, "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise UnsupportedError(
            f"{type(model).__name__} does not keep a plain key-value cache",
            where="export",
            limit="decoders whose layers all cache keys and values",
            remedy="use a transformer decoder",
        )
    return [(int(t.shape[1]), int(t.shape[3])) for layer in layers for t in (layer.keys, layer.values)]


def _export(
    module: Any, inputs: dict[str, Any], moving: dict[str, Any], names: list[str], outputs: list[str], opset: int
) -> ir.Model:
    import torch

    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (),
                kwargs=inputs,
                dynamo=True,
                opset_version=opset,
                optimize=False,  # the optimizer would fold transposed weights and lose their names
                dynamic_shapes=moving,
                input_names=names,
                output_names=outputs,
                external_data=False,
                verbose=False,
            )
    except BitwrightError:
        raise
    except Exception as error:  # the exporter raises many classes of its own
        raise UnsupportedError(
            f"{type(module.wrapped).__name__} cannot be exported to ONNX",
            where="torch.onnx.export",
            limit=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            remedy="export the model to ONNX yourself and pass the .onnx file",
        ) from error
    assert program is not None
    graph: ir.Model = program.model
    if (
        graph.opset_imports[""] != opset
    ):  # the exporter keeps the opset it knows and only logs that it could not convert
        raise UnsupportedError(
            f"the exporter wrote opset {graph.opset_imports['']}",
            where="torch.onnx.export",
            limit=f"opset {opset} was asked for",
            remedy="export at opset 18 or later",
        )
    for value in list(graph.graph.initializers.values()):
        value.name = str(value.name).removeprefix("wrapped.")
    return graph
