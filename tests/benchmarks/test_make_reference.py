"""The reference script's transform on a small model: other weights, the same function."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.make_reference import without_grid
from tests.frontend import zoo

ROUNDING = 2e-5
"""Float32 rounding of moved factors through two layers; logits spread by about one."""


def test_factors_move_without_changing_the_function() -> None:
    import copy

    ids, original = zoo.prompt_ids(40), zoo.build("llama_tied")
    state = original.state_dict()
    torch.manual_seed(1)
    moved = without_grid(state, original.config.to_dict())
    assert set(state) - set(moved) == {"lm_head.weight"}  # tied: stored once, as the table
    changed = {name.rsplit(".", 2)[-2] for name, tensor in moved.items() if not torch.equal(tensor, state[name])}
    norms, attention = {"input_layernorm", "post_attention_layernorm"}, {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert changed == norms | attention | {"gate_proj", "up_proj", "down_proj"}
    model = copy.deepcopy(original)
    model.load_state_dict(moved, strict=False)
    logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].detach().numpy()
    np.testing.assert_allclose(logits, zoo.reference_logits("llama_tied", ids), atol=ROUNDING)


def test_same_seed_same_weights() -> None:
    model = zoo.build("llama_tied")
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(without_grid(model.state_dict(), model.config.to_dict()))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
