"""A model exported without its weights: they are put into the graph as what they are in their files.

Loading a model into torch takes four bytes per parameter. A shell has the module's structure, buffers and parameters,
but nobody ever writes to the parameters' memory, so that the system never has to provide it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitwright.errors import BitwrightError
from bitwright.frontend.export import quiet
from bitwright.frontend.graph import dims
from bitwright.frontend.torch_model import ATTENTION, exported, family, translated

if TYPE_CHECKING:
    import onnx_ir as ir

    from bitwright.frontend.stored_weights import StoredTensor


def export_shell(config: Any, stored: Mapping[str, StoredTensor], where: str) -> ir.Model | None:
    """The raw graph of a model whose parameters are ``stored`` one by one.

    None where they are not: where transformers renames, splits or joins what the files hold, where something is
    missing or left over, or where the exporter does not keep every parameter as it is.

    Raises:
        UnsupportedError: for an architecture that transformers does not know, or a model that cannot be exported.
    """
    try:
        with quiet():
            model = _shell(config, stored)
    except BitwrightError:
        raise
    except Exception as error:  # transformers raises what its parts raise
        raise translated(error, where, "structure") from error
    if model is None:
        return None
    graph = exported(model)
    initializers = graph.graph.initializers
    for name, aliases in _names(model).items():
        value = next((initializers[alias] for alias in aliases if alias in initializers), None)
        if value is None or dims(value) != stored[name].shape:
            return None
        value.const_value = stored[name].lazy(str(value.name))
    return graph


def _names(model: Any) -> dict[str, list[str]]:
    """All names of each parameter, by its first: a tied one has several, and the exporter keeps any of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {aliases[0]: aliases for aliases in names.values()}


def _shell(config: Any, stored: Mapping[str, StoredTensor]) -> Any:
    import torch
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = family(config).from_config(
            config, trust_remote_code=False, attn_implementation=ATTENTION, dtype=torch.float32
        )
    model.tie_weights()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if shapes != {name: tensor.shape for name, tensor in stored.items()} or _converts(model):
        return None
    empty: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in empty:
                empty[id(parameter)] = torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=False)
            setattr(module, name, empty[id(parameter)])
    return model.eval()


def _converts(model: Any) -> bool:
    """Whether transformers changes what the files of this architecture hold while it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))
