"""Loading a transformers model offline, without pickle and without remote code, and making a source of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import BitwrightError, InputError, UnsupportedError, UsageError
from bitwright.frontend.export import export_decoder, export_encoder, quiet
from bitwright.frontend.export_cache import exported_once

if TYPE_CHECKING:
    import onnx_ir as ir

ATTENTION = "sdpa"  # exported as one op
OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_MAX = {
    "num_hidden_layers": 4096,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "vocab_size": 1 << 24,
    "num_attention_heads": 1 << 14,
}


def load_config(folder: Path, **where: str) -> Any:
    """The transformers config of a folder or GGUF file, checked.

    Args:
        where: ``gguf_file`` for a GGUF.

    Raises:
        InputError: for sizes that make no sense.
        UnsupportedError: for an architecture that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(folder), **where, **OFFLINE)
    except Exception as error:  # transformers raises what its parsers raise
        raise translated(error, str(folder), "config") from error
    check_sizes(config.get_text_config(), str(folder))
    return config


def check_sizes(config: Any, where: str) -> None:
    """Refuse sizes that are absurd before anything of that size is made."""
    for name, most in _MAX.items():
        size = getattr(config, name, None)
        if size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
            raise InputError(
                f"{name} is {size!r}",
                where=f"config of {where}",
                limit=f"an integer from 1 to {most}",
                remedy="check config.json",
            )
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None)
    if heads and groups is not None and (not isinstance(groups, int) or groups < 1 or heads % groups):
        raise InputError(
            f"num_key_value_heads is {groups!r}",
            where=f"config of {where}",
            limit=f"a divisor of num_attention_heads {heads}",
            remedy="check config.json",
        )


def load_model(config: Any, folder: Path, elements: int, **where: str) -> Any:
    """The module with its weights, float32, in evaluation mode.

    Args:
        elements: numbers that the weight files hold; a config that asks for many more is refused before they are
            allocated. where: ``gguf_file`` for a GGUF.

    Raises:
        InputError: where weights are missing, have other shapes than the config says, or cannot be read.
        UnsupportedError: for an architecture that transformers does not know.
    """
    import torch

    auto = family(config)
    try:
        with quiet():
            with torch.device("meta"):
                asked = sum(p.numel() for p in auto.from_config(config, trust_remote_code=False).parameters())
            if asked > elements * 1.1 + (1 << 20):
                raise InputError(
                    f"the config describes {asked} parameters",
                    where=str(folder),
                    limit=f"the weight files hold {elements}",
                    remedy="config and weights do not belong together: download both again",
                )
            model, report = auto.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                use_safetensors=None if where else True,
                attn_implementation=ATTENTION,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused below
                **where,
                **OFFLINE,
            )
    except BitwrightError:
        raise
    except Exception as error:
        raise translated(error, str(folder), "weights") from error
    _check_report(report, model, str(folder))
    return model.eval().requires_grad_(False)


def family(config: Any) -> Any:
    """The class of transformers that makes models of this architecture."""
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if is_decoder(config) else AutoModel


def is_decoder(config: Any) -> bool:
    """Whether the checkpoint is a causal language model: its architecture says so, or its type has no other use."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    names = config.architectures or []
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return True
    return config.model_type in CAUSAL and config.model_type not in MASKED


def _check_report(report: dict[str, Any], model: Any, where: str) -> None:
    # A tied head, and buffers computed from the config, need not be in the file.
    missing = sorted(set(report.get("missing_keys", ())) - {name for name, _ in model.named_buffers()})
    missing = [name for name in missing if "pooler" not in name]  # of an encoder: not part of the hidden states
    mismatched = sorted(
        str(item[0] if isinstance(item, (tuple, list)) else item) for item in report.get("mismatched_keys", ())
    )
    if missing or mismatched:
        names = ", ".join([*missing, *mismatched][:5])
        raise InputError(
            f"{len(missing)} weights are missing and {len(mismatched)} have another shape: {names}",
            where=where,
            limit="every parameter of the config's architecture",
            remedy="config and weights do not belong together: download both again",
        )


def translated(error: Exception, where: str, what: str) -> BitwrightError:
    """What transformers raised, as one of our errors."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    limit = lines[0][:300] if lines else type(error).__name__
    unknown = (
        "trust_remote_code",
        "does not recognize this architecture",
        "Unrecognized",
        "not supported",
        "custom code",
    )
    if any(word in str(error) for word in unknown):
        return UnsupportedError(
            "this architecture is not supported by the installed transformers",
            where=where,
            limit=limit,
            remedy="use a known architecture (no remote code is run), or export it and pass the .onnx file",
        )
    return InputError(
        f"the {what} of the model cannot be loaded", where=where, limit=limit, remedy="download the model again"
    )


def exported(model: Any) -> ir.Model:
    """The module as a raw ONNX graph; traced once per configuration and kept (see ``export_cache``)."""
    return exported_once(model, export_decoder if is_decoder(model.config) else export_encoder)


def chosen_context(limit: int | None, wanted: int | None, where: str) -> int:
    """How many positions to import: what the user wants, at most what the model has.

    Raises:
        UsageError: for more than the model has, or where nobody says.
    """
    if wanted is not None and wanted < 1:
        raise UsageError(
            f"a context of {wanted} positions", where="context", limit="at least 1", remedy="choose a positive context"
        )
    if limit is None and wanted is None:
        raise UsageError(
            "the model does not say how many positions it has",
            where=where,
            limit="config.json (max_position_embeddings) or genai_config.json (context_length) beside the model",
            remedy="pass the context",
        )
    if limit is not None and wanted is not None and wanted > limit:
        raise UsageError(
            f"a context of {wanted} positions",
            where=where,
            limit=f"the model has {limit}",
            remedy=f"choose at most {limit}",
        )
    return wanted if wanted is not None else int(limit or 0)
