"""Bytes that decoding one token reads: of each parameter, of all of them, and of each operation of a flattened step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bitwright.program import TOKEN_RANK, Program

if TYPE_CHECKING:
    from bitwright.codegen.step.program import Operand, Operation


def parameter_bytes(program: Program) -> dict[str, int]:
    """Bytes of each parameter that one decode step reads.

    Everything, but a single row of a rotary table, and of a token or position table that is not the lm_head as well.
    """
    tables = {site.weight: site.shape[0] for site in program.sites if site.kind == "table" and not site.tied}
    rows = {name: program.parameters[name].shape[0] for name in program.rotary_tables if name in program.parameters}
    read = {}
    for name, parameter in program.parameters.items():
        read[name] = parameter.nbytes // (rows.get(name) or _rows_looked_up(name, tables))
    return read


def _rows_looked_up(name: str, tables: Mapping[str, int]) -> int:
    """Rows of the table that a parameter is, or is a packed tensor of (``t.codes``; ``t.64.codes`` of a run); else 1.

    The row that is read lies in one run only: dividing each run by all rows counts the average row.
    """
    matrix = name.rpartition(".")[0]
    run = matrix.rpartition(".")
    return tables.get(name) or tables.get(matrix) or (tables.get(run[0]) if run[2].isdigit() else None) or 1


def weight_bytes_per_token(program: Program) -> int:
    """Bytes of parameters that one decode step reads, each counted once."""
    return sum(parameter_bytes(program).values())


def operation_bytes(
    program: Program, operations: Iterable[Operation], cache_bytes: Mapping[int, int]
) -> list[tuple[int, int]]:
    """For each operation of the step, bytes of weights it reads, and bytes of cache per cached token.

    An operation that reads the token ids looks rows up, so a tied table (and the table of its rows' order) counts as
    one row there and as a whole behind it. A cache that is written in place is not counted as read.

    Args:
        cache_bytes: bytes of one position of each state tensor, by its number.
    """
    names, whole = list(program.parameters), parameter_bytes(program)
    tied = {site.weight: site.shape[0] for site in program.sites if site.tied}
    if TOKEN_RANK in program.parameters:
        tied[TOKEN_RANK] = program.parameters[TOKEN_RANK].shape[0]

    def weight(operand: Operand, looks_up: bool) -> int:
        name = names[operand.index]
        return whole[name] // (_rows_looked_up(name, tied) if looks_up else 1)

    found = []
    for operation in operations:
        read = {operand for operand in operation.inputs if not isinstance(operand, (str, int))}
        looks_up = any(operand.region == "input" for operand in read)
        written = {operation.inputs[i] for i in operation.in_place}
        found.append(
            (
                sum(weight(operand, looks_up) for operand in read if operand.region == "weight"),
                sum(cache_bytes[operand.index] for operand in read - written if operand.region == "state"),
            )
        )
    return found
