"""Statistics of the queries and keys of every attention, after rotation: what key maps are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bitwright.keymap import KeyStatistics

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids

Progress = Callable[[int, int], None]


def collect_keys(
    model: ImportedModel, interpreter: Interpreter, windows: Ids, *, progress: Progress | None = None
) -> tuple[KeyStatistics, ...]:
    """One per attention, in the graph's order, over all tokens of ``windows`` int64 [windows, tokens] but the first.

    The windows stand at positions all over the context, where the graph takes positions: rotated keys depend on them.
    First tokens attract attention by keys unlike all others (Xiao et al. 2023) and would spoil the mean.
    """
    import torch

    nodes = [node for node in model.graph.graph if node.op_type == "Attention"]
    names = [[node.inputs[index].name for index in (0, 1)] for node in nodes]
    wanted = {name for pair in names for name in pair}
    sums: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    heads = {}
    for node, (q, k) in zip(nodes, names, strict=True):
        for name, attribute in ((q, "q_num_heads"), (k, "kv_num_heads")):
            found = node.attributes.get(attribute)
            heads[name] = 0 if found is None else found.as_int()

    def add(name: str, value: torch.Tensor) -> None:
        x = value if value.dim() == 4 else value.reshape(*value.shape[:2], heads[name], -1).transpose(1, 2)
        x = x[0, :, 1:].double()
        total, moment = x.sum(1), x.transpose(1, 2) @ x
        sums[name] = sums[name] + total if name in sums else total
        moments[name] = moments[name] + moment if name in moments else moment

    count, length = windows.shape
    room = max(0, model.context - length)
    outputs = tuple(wanted)
    with interpreter.observe(outputs, add), torch.no_grad():
        for index, window in enumerate(windows):
            feeds = interpreter.feeds(window)
            if "position_ids" in feeds:
                feeds["position_ids"] = feeds["position_ids"] + room * index // max(1, count - 1)
            interpreter.run(feeds, outputs)
            if progress is not None:
                progress(index + 1, count)
    tokens = count * (length - 1)
    return tuple(_statistics(sums[k] / tokens, moments[k] / tokens, moments[q] / tokens) for q, k in names)


def _statistics(mean: torch.Tensor, keys: torch.Tensor, queries: torch.Tensor) -> KeyStatistics:
    covariance = keys - mean[:, :, None] * mean[:, None, :]
    grouped = queries.reshape(keys.shape[0], -1, *queries.shape[1:]).mean(1)
    return KeyStatistics(*(part.cpu().numpy() for part in (mean, covariance, grouped)))
