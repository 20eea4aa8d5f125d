"""What the training of codes needs on either side: which matrices are codes, and codes as numbers and back again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.compiling.calibration import WINDOWS, text_windows
from bitwright.errors import UsageError
from bitwright.runs import runs_of

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

    from bitwright.frontend.distill.matrix import FloatRows, QuantizedRows
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids
    from bitwright.passes.quantizers.grid import Grid
    from bitwright.passes.quantizers.matrix import QuantizedMatrix, Quantizer, RunRows
    from bitwright.plan import Plan
    from bitwright.program import Program
    from bitwright.runs import WeightsScheme
    from bitwright.scheme import WeightScheme

HELD_OUT = 8
"""Windows that are not trained on: they decide whether training was worth it."""

HELD_OUT_SHARE = 8
"""They are from the last of so many equal parts of the text; what is trained on is from the others."""

BYTES_PER_WEIGHT = 32
"""In memory while training: float weight, latent number, what it was at the start and its gradient, two moments, matrix
and its gradient."""

Tell = Callable[[str], None]
Matrices = Mapping[str, "tuple[RunRows, ...]"]
"""Name of a weight in the IR to the runs of its rows, as they are stored."""


def packed_schemes(program: Program, plan: Plan) -> dict[str, WeightsScheme]:
    """Schemes by weight of the sites whose weights become codes, in some of their rows at least."""
    result: dict[str, WeightsScheme] = {}
    for site in program.sites:
        if not site.weight:
            continue
        scheme: Any = plan.schemes[site.name]
        if not all(run.scheme.weight.is_float for run in runs_of(scheme, site.shape[0])):
            result[site.weight] = scheme
    return result


def require_memory(needed: int, what: str, option: str) -> None:
    """Raises UsageError: not so many bytes are available."""
    from bitwright.runtime.memory import available_bytes

    free = available_bytes()
    if needed > free:
        raise UsageError(
            f"{what} takes about {needed / 1e9:.1f} GB of memory",
            where=option,
            limit=f"{free / 1e9:.1f} GB are available",
            remedy=f"leave {option} out, or use a machine with more memory",
        )


def training_windows(model: ImportedModel, text: Path | None, most: int, option: str) -> tuple[Ids, Ids]:
    """What is trained on, at most ``most`` windows, and what is held out, at most HELD_OUT: int64 [windows, tokens].

    Either are evenly spaced, in text that quantizers which calibrate have not read: what they make is better there than
    on any other text, and training that gains on others looks as if it were worth nothing. Where too little of a text
    is left, windows that they have read are trained on as well, and held out if there are no others.

    Raises:
        InputError: the text cannot be read or is too short, or the model has no tokenizer.
        UsageError: it is shorter than two windows.
    """
    from bitwright.frontend.calibrate.windows import places

    windows = text_windows(model, text, most=sys.maxsize)
    count = len(windows)
    if count < 2:
        raise UsageError(
            "the calibration text is too short to train on", where=option, limit="two windows of 512 tokens"
        )
    trained, held_out = np.split(np.arange(count), [count - max(count // HELD_OUT_SHARE, 1)])
    read = places(count, WINDOWS)
    unread = np.setdiff1d(trained, read)
    trained = unread if len(unread) >= most else trained
    unread = np.setdiff1d(held_out, read)
    held_out = unread if len(unread) else held_out
    return windows[trained[places(len(trained), most)]], windows[held_out[places(len(held_out), HELD_OUT)]]


def quantized(quantizer: Quantizer, weights: Any, scheme: WeightsScheme) -> tuple[RunRows, ...]:
    """The runs of a matrix, float32 [outputs, inputs], as they are stored."""
    made: list[RunRows] = []
    first = 0
    for run in runs_of(scheme, len(weights)):
        part, weight = weights[first : first + run.rows], run.scheme.weight
        made.append(_floats(part, weight) if weight.is_float else quantizer(part, weight, first))
        first += run.rows
    return tuple(made)


def rows_of(runs: tuple[RunRows, ...], scheme: WeightsScheme) -> tuple[QuantizedRows | FloatRows, ...]:
    """The numbers of runs, on their grids where they are quantized."""
    from bitwright.frontend.distill.matrix import FloatRows
    from bitwright.passes.quantizers.matrix import QuantizedMatrix, rows_in

    parts = runs_of(scheme, sum(rows_in(run) for run in runs))
    return tuple(
        _rows(run, part.scheme.weight) if isinstance(run, QuantizedMatrix) else FloatRows(run)
        for run, part in zip(runs, parts, strict=True)
    )


def matrices_of(
    rows: tuple[QuantizedRows | FloatRows, ...], start: tuple[RunRows, ...], scheme: WeightsScheme
) -> tuple[RunRows, ...]:
    """What trained rows are stored as; zero points and codebooks are those they started with, and so are floats."""
    from bitwright.frontend.distill.matrix import QuantizedRows
    from bitwright.passes.quantizers.matrix import QuantizedMatrix, rows_in

    made: list[RunRows] = []
    for trained, first, part in zip(rows, start, runs_of(scheme, sum(map(rows_in, start))), strict=True):
        if isinstance(trained, QuantizedRows) and isinstance(first, QuantizedMatrix):
            made.append(_matrix(trained, first, part.scheme.weight))
        else:
            made.append(first)
    return tuple(made)


def update(digest: Digest, run: RunRows) -> None:
    """Let a digest depend on a run of rows."""
    from bitwright.passes.quantizers.matrix import QuantizedMatrix

    arrays = (run.codes, run.scales) if isinstance(run, QuantizedMatrix) else (run,)
    digest.update(b"".join(array.tobytes() for array in arrays))


def _floats(weights: Any, weight: WeightScheme) -> Any:
    """Float rows [rows, inputs] as their scheme stores them, in single precision."""
    return weights.astype(np.float16 if weight.bits == 16 else np.float32).astype(np.float32)


def _rows(matrix: QuantizedMatrix, weight: WeightScheme) -> QuantizedRows:
    """The numbers of a matrix on their grid, with its ends."""
    from bitwright.frontend.distill.matrix import QuantizedRows
    from bitwright.passes.quantizers.state import State

    grid = _grid(matrix, weight)
    state = State.of(matrix, grid)
    low, high = (np.full((1, 1), end, np.float32) for end in grid.ends)
    if state.zeros is not None:
        low, high = -state.zeros, high - low - state.zeros
    numbers = None if matrix.codebook is None else matrix.codebook.astype(np.float32)
    return QuantizedRows(state.values, matrix.scales.astype(np.float32), low, high, numbers)


def _matrix(rows: QuantizedRows, start: QuantizedMatrix, weight: WeightScheme) -> QuantizedMatrix:
    from bitwright.passes.quantizers.rtn import nearest_half
    from bitwright.passes.quantizers.state import State

    zeros = None if start.zeros is None else start.zeros.astype(np.float32)
    return State(rows.values, nearest_half(rows.scales), zeros).matrix(_grid(start, weight))


def _grid(matrix: QuantizedMatrix, weight: WeightScheme) -> Grid:
    from bitwright.passes.quantizers.grid import Integers, LookedUp

    return Integers.of(weight) if matrix.codebook is None else LookedUp(matrix.codebook)
