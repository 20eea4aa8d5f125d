"""Bytes per token, derived by hand for the small canonical decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitwright.codegen.step.program import Operand, Operation
from bitwright.frontend.relax.module import import_model
from bitwright.passes.find_sites import FindSites
from bitwright.traffic import operation_bytes, parameter_bytes, weight_bytes_per_token
from tests.canonical_model import Shape, decoder


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def program(request: pytest.FixtureRequest) -> Any:
    return FindSites()(import_model(decoder(Shape(layers=1, tied=request.param)), capacity=64))


def test_rotary_tables_are_found_and_count_one_row(program: Any) -> None:
    assert len(program.rotary_tables) == 2
    read = parameter_bytes(program)
    for name in program.rotary_tables:
        positions, pairs = program.parameters[name].shape
        assert positions > 1 and read[name] == 4 * pairs


def test_all_of_a_tied_table_is_read_and_one_row_of_an_untied_one(program: Any) -> None:
    (table,) = [site for site in program.sites if site.kind == "table"]
    read = parameter_bytes(program)[table.weight]
    assert read == 4 * table.shape[1] * (table.shape[0] if table.tied else 1)


def test_the_total_counts_every_other_parameter_whole(program: Any) -> None:
    stored = sum(parameter.nbytes for parameter in program.parameters.values())
    rotary = [program.parameters[name] for name in program.rotary_tables]
    unread = sum(parameter.nbytes - parameter.nbytes // parameter.shape[0] for parameter in rotary)
    (table,) = [site for site in program.sites if site.kind == "table"]
    unread += 0 if table.tied else 4 * table.shape[1] * (table.shape[0] - 1)
    assert weight_bytes_per_token(program) == stored - unread


def test_packed_tensors_of_an_untied_table_count_one_row(program: Any) -> None:
    (table,) = [site for site in program.sites if site.kind == "table"]
    codes = replace(program.parameters[table.weight], name=f"{table.weight}.codes", dtype="uint8")
    packed = replace(program, parameters={codes.name: codes})
    assert weight_bytes_per_token(packed) == table.shape[1] * (table.shape[0] if table.tied else 1)


def test_an_operation_reads_its_weights_and_the_caches_it_does_not_write(program: Any) -> None:
    (table,) = [site for site in program.sites if site.kind == "table"]
    place = list(program.parameters).index(table.weight)
    weight, row = Operand("weight", place), table.shape[1] * np.dtype("float32").itemsize
    common: dict[str, Any] = {"workers": ("w",), "splits": (True,), "results": (Operand("value", 1),)}
    operations = [
        Operation("lookup", inputs=(Operand("input", 0), weight), **common),
        Operation("head", inputs=(Operand("value", 0), weight, 7), **common),
        Operation("append", inputs=(Operand("state", 0), Operand("state", 1)), in_place=(0, 1), **common),
        Operation("attend", inputs=(Operand("state", 0), Operand("state", 1), "position"), **common),
    ]
    whole = row * (table.shape[0] if table.tied else 1)
    assert operation_bytes(program, operations, {0: 10, 1: 30}) == [(row, 0), (whole, 0), (0, 0), (0, 40)]
