"""Random weights of a given shape are a folder that transformers loads, the same every time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmarks.synthetic import SHAPES, Shape, write

SMALL = Shape(layers=2, width=64, hidden=96, heads=4, kv_heads=2, head_dim=16, vocab=50)


def test_transformers_reads_every_tensor(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write(SMALL, tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    assert sum(p.numel() for p in model.parameters()) == sum(math.prod(shape) for _, shape in SMALL.tensors())
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3]])).logits[0, -1].numpy()
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10
    assert model.config.num_key_value_heads == 2 and model.lm_head.weight is model.model.embed_tokens.weight


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    write(SMALL, tmp_path / "a")
    first = (tmp_path / "a" / "model.safetensors").read_bytes()
    write(SMALL, tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == first
    assert not list(tmp_path.glob("*/*.tmp"))


def test_the_shapes_are_those_of_the_models() -> None:
    parameters = {name: sum(math.prod(s) for _, s in shape.tensors()) for name, shape in SHAPES.items()}
    assert parameters["llama-3.2-1b"] == 1_235_814_400  # as the published model counts
    # One layer of Llama-3-8B: (8,030,261,248 - two tables of 128,256 x 4,096 - the last norm) / 32.
    layer = (8_030_261_248 - 2 * 128_256 * 4_096 - 4_096) // 32
    assert parameters["llama-3-8b-layers"] == 4 * layer + 32_000 * 4_096 + 4_096
