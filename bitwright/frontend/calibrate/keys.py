"""Statistics of keys and values, of the gradients there, and of queries: what cache maps are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.keymap import HeadStatistics

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids

Progress = Callable[[int, int], None]
Array = npt.NDArray[np.float64]


def collect_heads(
    model: ImportedModel,
    interpreter: Interpreter,
    windows: Ids,
    context: int,
    *,
    run: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[tuple[HeadStatistics, HeadStatistics], ...]:
    """Of the rotated keys and the values of each attention, in the graph's order, over ``windows`` int64 [w, tokens].

    The windows stand at positions all over ``context`` tokens, where the graph takes positions: rotated keys depend on
    them. More stand near the beginning, which every text has.
    First tokens attract attention by keys unlike all others (Xiao et al. 2023) and would spoil the keys' mean: they are
    left out there. Gradients are those of log p of sampled labels (``gradients.py``), each divided by the square root
    of its token's norm: of few tokens' gradients, some of which are a hundred times the others', samples of this size
    would learn little but these tokens' directions.

    Args:
        run: gradients are those of what tokens of later runs of so many see (0: of what all do).
    """
    from bitwright.frontend.calibrate.points import Points

    pairs = Points.of(model.graph).caches
    names = {name for pair in pairs for name in pair}
    keys = {pair[0] for pair in pairs}
    heads = _heads(model)
    readers = dict(zip((pair[0] for pair in pairs), _queries(model), strict=True))
    sums: dict[str, _Sums] = {}
    moments: dict[str, Array] = {}

    def add_queries(name: str, value: torch.Tensor) -> None:
        q = _by_head(value.detach(), heads[name])[1:].transpose(0, 1)
        moment = (q.transpose(1, 2) @ q).cpu().numpy()
        moments[name] = moments[name] + moment if name in moments else moment

    count, length = windows.shape
    room = max(0, min(context, model.context) - length)
    for index, window in enumerate(windows):
        first = room * index**2 // max(1, count - 1) ** 2
        with interpreter.caches(dict.fromkeys(keys, run)), interpreter.observe(set(readers.values()), add_queries):
            found = _run(interpreter, window, first, names, (seed, index))
        for name, (value, gradient) in found.items():
            sums.setdefault(name, _Sums()).add(
                *(_by_head(x, heads[name])[int(name in keys) :] for x in (value, gradient))
            )
        if progress is not None:
            progress(index + 1, count)
    result = []
    for k, v in pairs:
        by_query_head = moments[readers[k]]
        of_keys = sums[k].statistics()
        grouped = by_query_head.reshape(len(of_keys.mean), -1, *by_query_head.shape[1:])
        result.append((replace(of_keys, queries=grouped.mean(1) / (count * (length - 1))), sums[v].statistics()))
    return tuple(result)


class _Sums:
    """Running sums of one cache's values and gradients, float64 [tokens, heads, elements] at a time."""

    def __init__(self) -> None:
        self._tokens, self._parts = 0, (np.zeros(0), np.zeros(0), np.zeros(0))

    def add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        norm = g.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]
        x, g = x.transpose(0, 1), (g / norm.sqrt()).transpose(0, 1)
        parts = [part.cpu().numpy() for part in (x.sum(1), x.transpose(1, 2) @ x, g.transpose(1, 2) @ g)]
        mean, square, gradients = parts if not self._tokens else map(np.add, self._parts, parts)
        self._parts = mean, square, gradients
        self._tokens += x.shape[1]

    def statistics(self) -> HeadStatistics:
        mean, square, gradients = (part / self._tokens for part in self._parts)
        return HeadStatistics(mean, square, gradients)


def _run(
    interpreter: Interpreter, window: Ids, first: int, names: set[str], seed: tuple[int, int]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Values and gradients of ``names`` in a window that stands at positions ``first`` ..."""
    import torch

    from bitwright.frontend.calibrate.gradients import sampled_labels
    from bitwright.frontend.interpreter import cache_name

    leaves: dict[str, torch.Tensor] = {}
    cached = {cache_name(name): name for name in names}

    def see(name: str, value: torch.Tensor) -> torch.Tensor:
        leaf = value if value.requires_grad else value.detach().requires_grad_()
        leaves[cached[name]] = leaf
        return leaf

    feeds = interpreter.feeds(window)
    if "position_ids" in feeds:
        feeds["position_ids"] = feeds["position_ids"] + first
    with interpreter.observe(cached, see), torch.enable_grad():
        logs = torch.log_softmax(interpreter.run(feeds, ("logits",))["logits"][0].float(), -1)
        likelihood = logs.gather(1, sampled_labels(logs.detach().exp(), *seed)[:, None]).sum()
        gradients = torch.autograd.grad(likelihood, list(leaves.values()), allow_unused=True)
    return {
        name: (value.detach(), torch.zeros_like(value) if gradient is None else gradient)
        for (name, value), gradient in zip(leaves.items(), gradients, strict=True)
    }


def _heads(model: ImportedModel) -> dict[str, int]:
    """Heads by name of queries, keys and values, 0 where their tensors say it themselves."""
    found = {}
    for node in model.graph.graph:
        if node.op_type == "Attention":
            for value, name in zip(node.inputs, ("q_num_heads", "kv_num_heads", "kv_num_heads"), strict=False):
                attribute = node.attributes.get(name)
                found[str(value.name)] = 0 if attribute is None else attribute.as_int()
    return found


def _queries(model: ImportedModel) -> list[str]:
    """Names of each attention's queries."""
    return [str(node.inputs[0].name) for node in model.graph.graph if node.op_type == "Attention"]


def _by_head(value: torch.Tensor, heads: int) -> torch.Tensor:
    """[1, heads, n, D] or [1, n, heads * D] as float64 [n, heads, D]."""
    rows = value[0].transpose(0, 1) if value.dim() == 4 else value[0].reshape(value.shape[1], heads, -1)
    return rows.double()
