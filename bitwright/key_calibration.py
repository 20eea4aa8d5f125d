"""Key maps for a compilation: choose a text, run the float model over it, balance what its queries and keys were."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.keymap import KeyMap, key_map
from bitwright.plan import Plan
from bitwright.scheme import CacheScheme

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.options import Options

MOST_WINDOWS = 8
"""Of a text: 4,096 tokens. A head's covariance has a few thousand entries, and their balance asks for no more."""


def mapped_layers(plan: Plan) -> tuple[int, ...]:
    """The layers whose keys the plan stores mapped."""
    return tuple(
        int(name.split(".")[1])
        for name, scheme in plan.schemes.items()
        if isinstance(scheme, CacheScheme) and scheme.tensor == "k" and scheme.mapped
    )


def calibrated_key_maps(
    model: ImportedModel, options: Options, plan: Plan, tell: Callable[[str], None]
) -> dict[int, KeyMap]:
    """By layer, for the layers whose keys the plan stores mapped.

    Calibrates on the options' text, or on text that the model samples itself.

    Raises:
        InputError: the text cannot be read or is too short, or the model has no tokenizer.
    """
    layers = mapped_layers(plan)
    if not layers:
        return {}
    from bitwright.calibration import calibration_windows
    from bitwright.frontend.calibrate.keys import collect_keys
    from bitwright.frontend.interpreter import Interpreter

    interpreter = Interpreter(model.graph)
    with tempfile.TemporaryDirectory(prefix="bitwright-") as scratch:
        folder = options.calibration_cache or Path(scratch)
        windows = calibration_windows(model, interpreter, options.calibration, folder, tell)

    def progress(done: int, total: int) -> None:
        tell(f"calibrate keys: window {done} of {total}")

    chosen = windows[:: -(-len(windows) // MOST_WINDOWS)]
    statistics = collect_keys(model, interpreter, chosen, progress=progress)
    return {layer: key_map(statistics[layer]) for layer in layers}
