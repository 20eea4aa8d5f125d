"""Block-wise reconstruction for a compilation: quantize, train block by block against the float model's blocks.

What is in memory at a time: the values of all windows at one place of the graph, of the float and of the quantized
model; one block's weights in training; and the codes of what is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitwright.compiling import trainable
from bitwright.compiling.kept_block import KeptBlock
from bitwright.compiling.trainable import (
    Tell,
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
    from hashlib import _Hash as Digest
    from pathlib import Path

    from bitwright.compiling.trainable import Matrices
    from bitwright.frontend.allowance import Allowance
    from bitwright.frontend.model import ImportedModel
    from bitwright.frontend.reconstruct.blocks import Block
    from bitwright.frontend.reconstruct.train import Rows, Streams
    from bitwright.moments import Ids
    from bitwright.options import Options
    from bitwright.passes.quantizers.matrix import Quantizer, RunRows
    from bitwright.plan import Plan
    from bitwright.program import Parameter, Program
    from bitwright.runs import WeightsScheme

WINDOWS = 128
"""Trained on at most: every block is computed for each of them twice, whatever the number of steps."""

BYTES_PER_VALUE = 8
"""In memory for each number that blocks pass on: one in single precision for either model."""


@dataclass(frozen=True)
class Rebuilt:
    """Matrices after reconstruction.

    Attributes:
        matrices: quantized runs by weight: of the blocks, and of the tables before them.
        before, after: mean error of the blocks that there was time for, on held-out windows; see
            ``frontend/reconstruct/train.py``. 0 if there was time for none.
        trained, blocks: how many blocks there was time for, and how many there are.
        digest: of what the matrices were made from, and of themselves.
    """

    matrices: Matrices
    before: float
    after: float
    trained: int
    blocks: int
    digest: str


@dataclass(frozen=True)
class _Start:
    """What the matrices are before training, made when they are asked for."""

    program: Program
    schemes: Mapping[str, WeightsScheme]
    quantizer_of: Callable[[Parameter], Quantizer]

    def weights(self, name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.asarray(self.program.parameters[name].load(), dtype=np.float32)

    def quantized(self, name: str) -> tuple[RunRows, ...]:
        parameter = self.program.parameters[name]
        return quantized(self.quantizer_of(parameter), self.weights(name), self.schemes[name])


def rebuilt(
    model: ImportedModel,
    program: Program,
    plan: Plan,
    options: Options,
    quantizer_of: Callable[[Parameter], Quantizer],
    tell: Tell,
) -> Rebuilt:
    """Train the linear layers of ``plan`` block by block; they begin as ``quantizer_of`` makes them.

    No block's error on the held-out windows, read behind what was taken for the blocks before it, is larger than with
    the matrices that it began with: else it keeps those. Blocks that time does not suffice for keep theirs as well.

    Raises:
        UnsupportedError: the plan quantizes no linear layer inside a block.
        UsageError: there is not enough memory.
        InputError: the calibration text cannot be read or is too short.
    """
    from bitwright.frontend.allowance import Allowance
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.reconstruct.train import Streams

    found, start = _blocks(model, program, plan, quantizer_of)
    most = min(options.reconstruct, WINDOWS)
    windows, held_out = training_windows(model, options.calibration, most, "--reconstruct")
    _require_memory(program, found, windows.size + held_out.size)
    stage = _Stage(
        Streams(Interpreter(model.graph), np.concatenate([windows, held_out]), len(held_out)),
        start,
        options,
        hashlib.sha256(_key(model, options, windows, held_out)),
        Allowance(options.stage_seconds),
    )
    stage.begin(found[0], [s.weight for s in program.sites if s.kind == "table" and s.weight in start.schemes])
    errors: list[tuple[float, float]] = []
    for number, block in enumerate(found, start=1):
        outcome = stage.rebuild(block, len(found) - number + 1)
        if outcome is None:
            tell(f"reconstruct: time is over before block {number} of {len(found)}")
            break
        if block.weights:
            errors.append(outcome)
            tell(f"reconstruct: block {number} of {len(found)}, error {outcome[0]:.4f} -> {outcome[1]:.4f}")
    before, after = (float(np.mean(column)) for column in zip(*errors, strict=True)) if errors else (0.0, 0.0)
    of_weights = sum(bool(block.weights) for block in found)
    return Rebuilt(stage.matrices, before, after, len(errors), of_weights, stage.digest.hexdigest())


class _Stage:
    """Reconstruction on its way from the first block to the last.

    Attributes:
        matrices: what was made so far.
        digest: of what all of them depend on.
    """

    def __init__(self, streams: Streams, start: _Start, options: Options, digest: Digest, allowance: Allowance) -> None:
        self._streams, self._start, self._options = streams, start, options
        self._allowance = allowance
        self.digest = digest
        self.matrices: dict[str, tuple[RunRows, ...]] = {}

    def begin(self, first: Block, tables: Iterable[str]) -> None:
        """Compute what ``first`` reads; tables are looked up before it."""
        begun = {name: self._start.quantized(name) for name in tables}
        self._keep(begun)
        self._streams.begin(first.source, self._rows(begun))

    def rebuild(self, block: Block, left: int) -> tuple[float, float] | None:
        """Train the matrices of ``block``, the first of ``left``, or read what an interrupted run made of them.

        Returns:
            The block's error before and after; None if there is no time for it any more.
        """
        part = self._allowance.part(left)
        begun = {name: self._start.quantized(name) for name in block.weights}
        self._add(begun)
        kept = self._kept()
        if kept is None and self._allowance.over:
            self.matrices.update(begun)
            return None
        self._streams.target(block)
        if kept is not None:
            made, errors = kept.matrices, (kept.before, kept.after)
            self._allowance = self._allowance.resumed(kept.seconds)
        else:
            made, errors = self._trained(block, begun, part) if begun else (begun, (0.0, 0.0))
            self._put(made, errors)
        if left > 1:
            self._streams.finish(block, {**self._fixed(block), **self._rows(made)})
        self._keep(made)
        return errors

    def _trained(self, block: Block, begun: Matrices, part: Allowance) -> tuple[Matrices, tuple[float, float]]:
        weights = {name: self._start.weights(name) for name in begun}
        rows, fixed = self._rows(begun), self._fixed(block)
        outcome = self._streams.train(block, rows, weights, fixed, self._options.reconstruct, part)
        if outcome.rows is None:
            return begun, (outcome.before, outcome.after)
        schemes = self._start.schemes
        made = {name: matrices_of(runs, begun[name], schemes[name]) for name, runs in outcome.rows.items()}
        return made, (outcome.before, outcome.after)

    def _fixed(self, block: Block) -> Rows:
        return self._rows({name: self.matrices[name] for name in block.shared})

    def _rows(self, matrices: Matrices) -> Rows:
        return {name: rows_of(runs, self._start.schemes[name]) for name, runs in matrices.items()}

    def _keep(self, matrices: Matrices) -> None:
        self.matrices.update(matrices)
        self._add(matrices)

    def _add(self, matrices: Matrices) -> None:
        for name, runs in matrices.items():
            self.digest.update(f"{name} {self._start.schemes[name]} ".encode())
            for run in runs:
                update(self.digest, run)

    def _path(self) -> Path | None:
        folder = self._options.calibration_cache
        return None if folder is None else folder / f"reconstructing-{self.digest.hexdigest()[:32]}.safetensors"

    def _kept(self) -> KeptBlock | None:
        path = self._path()
        return KeptBlock.read(path) if path is not None and path.exists() else None

    def _put(self, made: Matrices, errors: tuple[float, float]) -> None:
        path = self._path()
        if path is not None and made:
            KeptBlock(made, *errors, self._allowance.spent).write(path)


def _blocks(
    model: ImportedModel, program: Program, plan: Plan, quantizer_of: Callable[[Parameter], Quantizer]
) -> tuple[tuple[Block, ...], _Start]:
    from bitwright.frontend.reconstruct.blocks import blocks

    schemes = packed_schemes(program, plan)
    layers = {site.weight for site in program.sites if site.kind == "linear" and site.weight in schemes}
    found = blocks(model.graph, "logits" if model.kind == "decoder" else "hidden", layers)
    if not found:
        raise UnsupportedError(
            "no linear layer of a block is quantized", where=model.name, remedy="leave --reconstruct out"
        )
    return found, _Start(program, schemes, quantizer_of)


def _require_memory(program: Program, found: tuple[Block, ...], tokens: int) -> None:
    """The values of all windows, as wide as the narrowest input of a layer, and the largest block in training."""
    shapes = [[program.parameters[name].shape for name in block.weights] for block in found if block.weights]
    width = max(min(inputs for _, inputs in block) for block in shapes)
    count = max(sum(outputs * inputs for outputs, inputs in block) for block in shapes)
    codes = sum(outputs * inputs for block in shapes for outputs, inputs in block)
    needed = BYTES_PER_VALUE * width * tokens + trainable.BYTES_PER_WEIGHT * count + codes
    require_memory(needed, f"reconstructing blocks of {count / 1e6:.1f} million weights", "--reconstruct")


def _key(model: ImportedModel, options: Options, windows: Ids, held_out: Ids) -> bytes:
    """What training depends on besides codes. The number of threads decides in which order floats are summed."""
    import torch

    from bitwright.frontend.reconstruct.train import recipe

    numbers = f"{options.reconstruct} {options.stage_minutes} {torch.get_num_threads()} {recipe()}"
    text = b"".join(np.ascontiguousarray(part, dtype="<i8").tobytes() for part in (windows, held_out))
    return f"{model.digest} {numbers} {windows.shape} {held_out.shape} ".encode() + text
