"""Collect second moments by running the float model over windows of text.

Memory is bounded by a number of bytes of moments: the activations are taken in graph order, as many at a time as fit,
and every pass over the text runs only as far into the graph as the last of them. Moments are stored when their pass is
over, so that an interrupted calibration goes on with the passes that are missing.

Tokens count the same, or by the gradients at the layers' outputs (see ``weighting.py``): then every pass runs through
the whole graph and back; what an error of each output costs, and how often tokens are predicted, is kept as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bitwright.frontend.calibrate.products import Product, products
from bitwright.frontend.calibrate.weighting import weighted_moments
from bitwright.moments import FREQUENCIES, Moments, MomentStore, costs_of

if TYPE_CHECKING:
    import torch

    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids

MOMENT_BYTES = 1 << 30
"""Bytes of moments in memory at a time."""

Progress = Callable[[int, int], None]


def collect(
    model: ImportedModel,
    interpreter: Interpreter,
    windows: Ids,
    store: MomentStore,
    *,
    by_gradient: bool = False,
    memory: int = MOMENT_BYTES,
    progress: Progress | None = None,
) -> Moments:
    """E[x x^T] over all positions of all ``windows`` (int64 [windows, tokens]) for the input of every linear layer.

    Args:
        interpreter: of ``model``'s graph; its device computes.
        store: what it has already is not computed again.
        by_gradient: tokens count by gradients; needs a decoder.
        memory: bytes of moments in memory at a time; a single larger one is computed alone.
        progress: called with (windows done, windows in all passes together).
    """
    found = products(model.graph)
    missing = {p.activation: p.inputs for p in found if not _has(store, p, by_gradient=by_gradient)}
    if by_gradient and not missing and not store.has(FREQUENCIES):
        missing = {found[-1].activation: found[-1].inputs}
    passes = list(_passes(missing, memory))
    for number, activations in enumerate(passes):
        tick = _tick(progress, number, len(passes), len(windows))
        if by_gradient:
            outputs = {name: tuple(p.output for p in found if p.activation == name) for name in activations}
            weighted = weighted_moments(interpreter, windows, outputs, tick)
            moments = weighted.moments
            store.put(FREQUENCIES, weighted.frequencies.cpu().numpy())
            for output, cost in weighted.costs.items():
                store.put(costs_of(output), cost.cpu().numpy())
        else:
            moments = _means(interpreter, windows, activations, tick)
        for name, moment in moments.items():
            store.put(name, moment.cpu().numpy())
    return Moments(store, {p.weight: p.activation for p in found}, int(windows.size))


def _has(store: MomentStore, product: Product, *, by_gradient: bool) -> bool:
    return store.has(product.activation) and (not by_gradient or store.has(costs_of(product.output)))


def _tick(progress: Progress | None, number: int, passes: int, windows: int) -> Callable[[int], None]:
    if progress is None:
        return lambda _done: None
    return lambda done: progress(number * windows + done, passes * windows)


def _passes(widths: dict[str, int], memory: int) -> Iterator[tuple[str, ...]]:
    """Consecutive activations whose float32 moments fit ``memory`` together."""
    chosen: list[str] = []
    used = 0
    for name, width in widths.items():
        size = 4 * width * width
        if chosen and used + size > memory:
            yield tuple(chosen)
            chosen, used = [], 0
        chosen.append(name)
        used += size
    if chosen:
        yield tuple(chosen)


def _means(
    interpreter: Interpreter, windows: Ids, activations: tuple[str, ...], tick: Callable[[int], None]
) -> dict[str, torch.Tensor]:
    import torch

    sums: dict[str, torch.Tensor] = {}

    def add(name: str, value: torch.Tensor) -> None:
        rows = value.reshape(-1, value.shape[-1]).float()
        if name in sums:
            sums[name].addmm_(rows.T, rows)
        else:
            sums[name] = rows.T @ rows

    with interpreter.observe(activations, add), torch.no_grad():
        for done, window in enumerate(windows, start=1):
            interpreter.run(interpreter.feeds(window), activations[-1:])
            tick(done)
    return {name: total.div_(windows.size) for name, total in sums.items()}
