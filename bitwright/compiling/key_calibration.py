"""Maps of keys and values for a compilation or a profile: run the model over a text, balance what its caches held."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.cachemaps import CacheMaps
from bitwright.keymap import key_map, value_map
from bitwright.options import DEFAULT_CONTEXT, Options
from bitwright.plan import Plan
from bitwright.scheme import CacheScheme

if TYPE_CHECKING:
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids

MOST_WINDOWS = 8
"""Of a text: 4,096 tokens. A head's covariance has a few thousand entries, and their balance asks for no more."""

Tell = Callable[[str], None]


def mapped_sites(plan: Plan) -> tuple[str, ...]:
    """The caches that the plan stores mapped."""
    return tuple(n for n, scheme in plan.schemes.items() if isinstance(scheme, CacheScheme) and scheme.mapped)


def calibrated_cache_maps(model: ImportedModel, options: Options, plan: Plan, tell: Tell) -> CacheMaps:
    """The maps of the caches that the plan stores mapped.

    Calibrates on the options' text, or on text that the model samples itself.

    Raises:
        InputError: the text cannot be read or is too short, or the model has no tokenizer.
    """
    sites = mapped_sites(plan)
    if not sites:
        return CacheMaps()
    from bitwright.compiling.calibration import calibration_windows
    from bitwright.frontend.interpreter import Interpreter

    interpreter = Interpreter(model.graph)
    with tempfile.TemporaryDirectory(prefix="bitwright-") as scratch:
        folder = options.calibration_cache or Path(scratch)
        windows = calibration_windows(model, interpreter, options.calibration, folder, tell)
    schemes = [scheme for scheme in plan.schemes.values() if isinstance(scheme, CacheScheme)]
    run = max((scheme.recent for scheme in schemes), default=0)
    return cache_maps(model, interpreter, windows, sites, options.context or DEFAULT_CONTEXT, run, tell)


def cache_maps(
    model: ImportedModel,
    interpreter: Interpreter,
    windows: Ids,
    sites: Iterable[str],
    context: int,
    run: int,
    tell: Tell,
) -> CacheMaps:
    """Maps of ``sites`` (names of caches) from at most MOST_WINDOWS of ``windows`` int64 [windows, tokens].

    ``context``: tokens that the caches are to hold; ``run``: of the runs in which they keep recent ones exact.
    """
    from bitwright.frontend.calibrate.keys import collect_heads

    def progress(done: int, total: int) -> None:
        tell(f"calibrate caches: window {done} of {total}")

    chosen = windows[:: -(-len(windows) // MOST_WINDOWS)]
    statistics = collect_heads(model, interpreter, chosen, context, run=run, progress=progress)
    layers = {(int(site.split(".")[1]), site.endswith("k_cache")) for site in sites}
    return CacheMaps(
        {layer: key_map(statistics[layer][0]) for layer, is_key in sorted(layers) if is_key},
        {layer: value_map(statistics[layer][1]) for layer, is_key in sorted(layers) if not is_key},
    )
