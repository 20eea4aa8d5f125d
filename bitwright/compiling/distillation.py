"""Distillation for a compilation: quantize, train codes and scales against the float model, hand out the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.compiling.calibration import text_windows
from bitwright.errors import UnsupportedError, UsageError
from bitwright.runs import runs_of

if TYPE_CHECKING:
    from bitwright.frontend.distill.matrix import QuantizedRows
    from bitwright.frontend.distill.student import Student
    from bitwright.frontend.distill.train import Trained
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids
    from bitwright.options import Options
    from bitwright.passes.quantizers.grid import Grid
    from bitwright.passes.quantizers.matrix import QuantizedMatrix, Quantizer
    from bitwright.plan import Plan
    from bitwright.program import Parameter, Program
    from bitwright.runs import WeightsScheme
    from bitwright.scheme import WeightScheme

HELD_OUT = 8
"""Windows at the end of the text that are not trained on: they decide whether training was worth it."""

BYTES_PER_WEIGHT = 28
"""In memory while training: float weight, latent number and its gradient, two moments, matrix and its gradient."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Distilled:
    """Quantized runs by weight; divergence of held-out text before and after; and a digest of what it was made from."""

    matrices: Mapping[str, tuple[QuantizedMatrix, ...]]
    before: float
    after: float
    digest: str


def distilled(
    model: ImportedModel,
    program: Program,
    plan: Plan,
    options: Options,
    quantizer_of: Callable[[Parameter], Quantizer],
    tell: Tell,
) -> Distilled:
    """Train the matrices of ``plan``, which begin as ``quantizer_of`` makes them.

    The result is never worse than the beginning on the held-out windows: else the beginning is returned.

    Raises:
        UnsupportedError: the model is no decoder.
        UsageError: there is not enough memory.
        InputError: the calibration text cannot be read or is too short.
    """
    from bitwright.frontend.distill.student import Student
    from bitwright.frontend.distill.train import train
    from bitwright.frontend.interpreter import Interpreter

    if model.kind != "decoder":
        raise UnsupportedError("only decoders are distilled", where=model.name, remedy="leave --distill out")
    schemes = _packed_schemes(program, plan)
    _check_memory(sum(int(np.prod(program.parameters[name].shape)) for name in schemes))
    windows, held_out = _split(text_windows(model, options.calibration, most=options.distill + HELD_OUT))
    interpreter = Interpreter(model.graph)
    start: dict[str, tuple[QuantizedMatrix, ...]] = {}
    trainable: dict[str, tuple[tuple[QuantizedRows, ...], Any]] = {}
    for name, scheme in schemes.items():
        weights = np.asarray(program.parameters[name].load(), dtype=np.float32)
        start[name] = _quantized(quantizer_of(program.parameters[name]), weights, scheme)
        runs = runs_of(scheme, len(weights))
        rows = tuple(_rows(matrix, run.scheme.weight) for matrix, run in zip(start[name], runs, strict=True))
        trainable[name] = (rows, weights)
    student = Student(interpreter, trainable)
    del trainable

    def progress(done: int, divergence: float) -> None:
        tell(f"distill: step {done} of {options.distill}, divergence {divergence:.4f}")

    tell("distill: divergence before")
    digest = _digest(model, schemes, options, start, windows)
    kept = options.calibration_cache
    checkpoint = None if kept is None else kept / f"distilling-{digest[:32]}.pt"
    outcome = train(student, interpreter, windows, held_out, options.distill, checkpoint=checkpoint, progress=progress)
    return _chosen(start, student, schemes, outcome, digest)


def _digest(
    model: ImportedModel,
    schemes: Mapping[str, WeightsScheme],
    options: Options,
    start: Mapping[str, tuple[QuantizedMatrix, ...]],
    windows: Ids,
) -> str:
    """What training depends on, as sha256. Sums of floats are formed in an order that the number of threads decides."""
    import torch

    from bitwright.frontend.distill.train import recipe

    digest = hashlib.sha256(
        f"{model.digest} {options.distill} {torch.get_num_threads()} {recipe()} {windows.shape} ".encode()
    )
    digest.update(np.ascontiguousarray(windows, dtype="<i8").tobytes())
    for name, runs in start.items():
        digest.update(f"{name} {schemes[name]} ".encode())
        for run in runs:
            digest.update(run.codes.tobytes() + run.scales.tobytes())
    return digest.hexdigest()


def _packed_schemes(program: Program, plan: Plan) -> dict[str, WeightsScheme]:
    """Schemes by weight of the sites whose weights become codes in all their rows."""
    result: dict[str, WeightsScheme] = {}
    for site in program.sites:
        if not site.weight:
            continue
        scheme: Any = plan.schemes[site.name]
        if not any(run.scheme.weight.is_float for run in runs_of(scheme, site.shape[0])):
            result[site.weight] = scheme
    return result


def _check_memory(weights: int) -> None:
    from bitwright.runtime.memory import available_bytes

    needed, free = BYTES_PER_WEIGHT * weights, available_bytes()
    if needed > free:
        raise UsageError(
            f"distilling {weights / 1e6:.0f} million weights takes about {needed / 1e9:.1f} GB of memory",
            where="--distill",
            limit=f"{free / 1e9:.1f} GB are available",
            remedy="leave --distill out, or use a machine with more memory",
        )


def _split(windows: Ids) -> tuple[Ids, Ids]:
    """What is trained on and what is held out: an eighth of a short text, else HELD_OUT windows."""
    count = min(HELD_OUT, max(len(windows) // 8, 1))
    if len(windows) < 2:
        raise UsageError(
            "the calibration text is too short to distil on", where="--distill", limit="two windows of 512 tokens"
        )
    return windows[:-count], windows[-count:]


def _quantized(quantizer: Quantizer, weights: Any, scheme: WeightsScheme) -> tuple[QuantizedMatrix, ...]:
    made, first = [], 0
    for run in runs_of(scheme, len(weights)):
        made.append(quantizer(weights[first : first + run.rows], run.scheme.weight, first))
        first += run.rows
    return tuple(made)


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
    """The codes of trained rows; zero points and codebook are those they started with."""
    from bitwright.passes.quantizers.rtn import nearest_half
    from bitwright.passes.quantizers.state import State

    zeros = None if start.zeros is None else start.zeros.astype(np.float32)
    return State(rows.values, nearest_half(rows.scales), zeros).matrix(_grid(start, weight))


def _grid(matrix: QuantizedMatrix, weight: WeightScheme) -> Grid:
    from bitwright.passes.quantizers.grid import Integers, LookedUp

    return Integers.of(weight) if matrix.codebook is None else LookedUp(matrix.codebook)


def _chosen(
    start: Mapping[str, tuple[QuantizedMatrix, ...]],
    student: Student,
    schemes: Mapping[str, WeightsScheme],
    outcome: Trained,
    digest: str,
) -> Distilled:
    """The trained matrices if they are better than those they started from, else the latter."""
    if outcome.after >= outcome.before:
        return Distilled(start, outcome.before, outcome.before, digest)
    matrices = {}
    for name, rows in student.quantized().items():
        runs = runs_of(schemes[name], sum(len(run.values) for run in rows))
        matrices[name] = tuple(
            _matrix(trained, first, run.scheme.weight)
            for trained, first, run in zip(rows, start[name], runs, strict=True)
        )
    return Distilled(matrices, outcome.before, outcome.after, digest)
