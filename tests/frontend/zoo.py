"""Small, randomly initialised HF models of the architectures that the import must understand, and their torch answers.

Every model is built from a seed, has a vocabulary of 384 and sizes that groups of 32 divide. The parameters are drawn
wider than HF's initialisation draws them, norm gains differ from one and biases from zero: otherwise a dropped bias, a
dropped gain or a rotary embedding applied twice would hide below any tolerance.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

VOCAB = 384
CONTEXT = 256
SLIDING_WINDOW = 8
BOS, EOS = 1, 2
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "The tide comes in twice a day, and the harbour fills with boats from the villages along the coast.",
    "She counted the coins again: three of silver, nine of copper, one so worn that nobody could name its king.",
    "A compiler reads a program in one language and writes the same program in another.",
    "When the rain stopped, the children ran to the river to see how high the water had come.",
    "Bread needs flour, water, salt and time; most of all it needs time.",
    "for i in range(10): print(i, i * i)",
    "Où est la gare ? La gare est près du marché, à côté de l'église.",
    "In 1987 the bridge carried 4,500 cars a day; by 2019 it carried 31,000.",
)

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One model: its HF config and model classes, what kind of graph it becomes, and what it is in the zoo for."""

    config_class: str
    model_class: str
    kind: Literal["decoder", "encoder"]
    options: dict[str, Any]
    why: str


_LLAMA = {"hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
_SPECIALS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}

ENTRIES: dict[str, Entry] = {
    "llama_tied": Entry(
        "LlamaConfig",
        "LlamaForCausalLM",
        "decoder",
        {
            **_LLAMA,
            "hidden_size": 288,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
        "SmolLM2's shape: nine heads in groups of three, tied table; the heads are wider than the hidden state",
    ),
    "llama": Entry(
        "LlamaConfig",
        "LlamaForCausalLM",
        "decoder",
        {**_LLAMA, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 32, "tie_word_embeddings": False},
        "as many KV heads as query heads, untied lm_head",
    ),
    "qwen3": Entry(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        "decoder",
        {**_LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
        "RMSNorm of every head of q and k",
    ),
    "gemma3": Entry(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        "decoder",
        {
            **_LLAMA,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "query_pre_attn_scalar": 48,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            },
        },
        "sliding window, two rotary tables, scaled embedding, gains stored as offsets from one, GELU gate, post-norms",
    ),
    "gpt2": Entry(
        "GPT2Config",
        "GPT2LMHeadModel",
        "decoder",
        {"n_embd": 192, "n_layer": 2, "n_head": 6, "n_positions": CONTEXT},
        "learned positions, LayerNorm, biases, fused QKV, Conv1D weights stored [in, out]",
    ),
    "phi3": Entry(
        "Phi3Config",
        "Phi3ForCausalLM",
        "decoder",
        {**_LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2},
        "fused QKV and fused gate/up",
    ),
    "phi3_partial": Entry(
        "Phi3Config",
        "Phi3ForCausalLM",
        "decoder",
        {
            **_LLAMA,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        },
        "rotary embedding of 48 of each head's 64 values",
    ),
    "olmo2": Entry(
        "Olmo2Config",
        "Olmo2ForCausalLM",
        "decoder",
        {**_LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2},
        "norms after attention and MLP only, RMSNorm of the whole q and k",
    ),
    "bert": Entry(
        "BertConfig",
        "BertModel",
        "encoder",
        {
            "hidden_size": 192,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "max_position_embeddings": CONTEXT,
        },
        "an encoder: attention in both directions, token types, GELU by erf",
    ),
}
DECODERS = tuple(name for name, entry in ENTRIES.items() if entry.kind == "decoder")
ENCODERS = tuple(name for name, entry in ENTRIES.items() if entry.kind == "encoder")


@functools.cache
def build(name: str) -> Any:
    """The torch model ``name`` in float32 and eval mode; the same parameters each time. Shared: do not change it."""
    import torch
    import transformers

    entry = ENTRIES[name]
    specials = _SPECIALS if entry.kind == "decoder" else {"pad_token_id": EOS}
    config = getattr(transformers, entry.config_class)(vocab_size=VOCAB, **specials, **entry.options)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(list(ENTRIES).index(name))
        model = getattr(transformers, entry.model_class)(config).float().eval()
        _randomise(model)
    return model.requires_grad_(False)


def _randomise(model: Any) -> None:
    """Matrices ~ N(0, 1/inputs), gains += N(0, 0.1^2), biases ~ N(0, 0.1^2), tables ~ N(0, 1/(scale * width)).

    ``scale`` is the factor the model multiplies its embeddings with (Gemma; elsewhere 1). A larger table would make a
    tied model repeat its last token for ever, and a greedy comparison worthless.
    """
    import torch

    with torch.no_grad():
        for module in model.modules():
            kind = type(module).__name__
            weight = getattr(module, "weight", None)
            if weight is None:
                continue
            if "Norm" in kind:
                weight.add_(0.1 * torch.randn_like(weight))
            elif "Embedding" in kind:
                weight.normal_(std=(float(getattr(module, "embed_scale", 1.0)) * weight.shape[1]) ** -0.5)
            elif weight.data_ptr() != _table(model).data_ptr():
                weight.normal_(std=weight.shape[0 if kind == "Conv1D" else 1] ** -0.5)
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(std=0.1)


def _table(model: Any) -> Any:
    return model.get_input_embeddings().weight


@functools.cache
def tokenizer() -> Any:
    """A byte-level BPE ``tokenizers.Tokenizer`` of at most ``VOCAB`` tokens, trained on ``SENTENCES``; lossless."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    result = tokenizers.Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    result.train_from_iterator(SENTENCES, trainer)
    return result


def save_hf_folder(name: str, path: Path) -> Path:
    """Write ``name`` as an HF folder (config, safetensors, tokenizer with chat template) at ``path``; returns it."""
    import transformers

    build(name).save_pretrained(path)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[EOS],
        model_max_length=CONTEXT,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(path)
    return path


def prompt_ids(length: int, seed: int = 0) -> Ids:
    """``length`` random ordinary token ids, int64 [length]."""
    return np.random.default_rng(seed).integers(len(SPECIAL_TOKENS), VOCAB, length, dtype=np.int64)


def reference_logits(name: str, ids: Ids) -> Logits:
    """HF's logits at every position of ``ids`` [n], float32 [n, VOCAB]; an encoder's last hidden state [n, width]."""
    import torch

    with torch.inference_mode():
        output = build(name)(input_ids=torch.from_numpy(ids)[None])
    result: Logits = (output.logits if ENTRIES[name].kind == "decoder" else output.last_hidden_state)[0].numpy()
    return result


def reference_greedy(name: str, ids: Ids, steps: int) -> Ids:
    """The ``steps`` tokens HF generates greedily after ``ids`` [n], never stopping; int64 [steps]."""
    import torch

    model = build(name)
    tokens = torch.from_numpy(ids)[None]
    past, result = None, []
    with torch.inference_mode():
        for _ in range(steps):
            output = model(input_ids=tokens, past_key_values=past, use_cache=True)
            past, tokens = output.past_key_values, output.logits[:, -1:].argmax(-1)
            result.append(int(tokens))
    return np.array(result, dtype=np.int64)
