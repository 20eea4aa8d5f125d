"""Distillation for a compilation: quantize, train codes and scales against the float model, hand out the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.compiling import trainable
from bitwright.compiling.trainable import (
    matrices_of,
    packed_schemes,
    quantized,
    require_memory,
    rows_of,
    training_windows,
    update,
)
from bitwright.errors import UnsupportedError

if TYPE_CHECKING:
    from bitwright.compiling.trainable import Matrices, Tell
    from bitwright.frontend.distill.matrix import FloatRows, QuantizedRows
    from bitwright.frontend.distill.student import Student
    from bitwright.frontend.distill.train import Trained
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids
    from bitwright.options import Options
    from bitwright.passes.quantizers.matrix import Quantizer, RunRows
    from bitwright.plan import Plan
    from bitwright.program import Parameter, Program
    from bitwright.runs import WeightsScheme


@dataclass(frozen=True)
class Distilled:
    """What distillation made.

    Attributes:
        matrices: runs of rows by weight.
        before, after: divergence of held-out text, nats per token.
        share: of the way that training went from the beginning, how much is gone: 0 if nothing of it was better.
        digest: of what it was made from.
    """

    matrices: Matrices
    before: float
    after: float
    share: float
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
    schemes = packed_schemes(program, plan)
    count = sum(int(np.prod(program.parameters[name].shape)) for name in schemes)
    require_memory(trainable.BYTES_PER_WEIGHT * count, f"distilling {count / 1e6:.0f} million weights", "--distill")
    windows, held_out = training_windows(model, options.calibration, options.distill, "--distill")
    interpreter = Interpreter(model.graph)
    start: dict[str, tuple[RunRows, ...]] = {}
    matrices: dict[str, tuple[tuple[QuantizedRows | FloatRows, ...], Any]] = {}
    for name, scheme in schemes.items():
        weights = np.asarray(program.parameters[name].load(), dtype=np.float32)
        start[name] = quantized(quantizer_of(program.parameters[name]), weights, scheme)
        matrices[name] = (rows_of(start[name], scheme), weights)
    student = Student(interpreter, matrices)
    del matrices

    def progress(done: int, divergence: float) -> None:
        tell(f"distill: step {done} of {options.distill}, divergence {divergence:.4f}")

    tell("distill: divergence before")
    digest = _digest(model, schemes, options, start, (windows, held_out))
    kept = options.calibration_cache
    checkpoint = None if kept is None else kept / f"distilling-{digest[:32]}.pt"
    outcome = train(
        student,
        interpreter,
        windows,
        held_out,
        options.distill,
        seconds=options.stage_seconds,
        checkpoint=checkpoint,
        progress=progress,
    )
    return _chosen(start, student, schemes, outcome, digest)


def _digest(
    model: ImportedModel,
    schemes: Mapping[str, WeightsScheme],
    options: Options,
    start: Matrices,
    windows: tuple[Ids, Ids],
) -> str:
    """What training depends on, as sha256. Sums of floats are formed in an order that the number of threads decides."""
    import torch

    from bitwright.frontend.distill.train import recipe

    numbers = f"{options.distill} {options.stage_minutes} {torch.get_num_threads()} {recipe()}"
    digest = hashlib.sha256(f"{model.digest} {numbers} {[part.shape for part in windows]} ".encode())
    for part in windows:
        digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    for name, runs in start.items():
        digest.update(f"{name} {schemes[name]} ".encode())
        for run in runs:
            update(digest, run)
    return digest.hexdigest()


def _chosen(
    start: Matrices,
    student: Student,
    schemes: Mapping[str, WeightsScheme],
    outcome: Trained,
    digest: str,
) -> Distilled:
    """The trained matrices if they are better than those they started from, else the latter."""
    if not outcome.after < outcome.before:
        return Distilled(start, outcome.before, outcome.before, 0.0, digest)
    matrices = {name: matrices_of(rows, start[name], schemes[name]) for name, rows in student.quantized().items()}
    return Distilled(matrices, outcome.before, outcome.after, outcome.share, digest)
