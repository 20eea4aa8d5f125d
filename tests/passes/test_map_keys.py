"""Key maps in the IR: what the pass inserts, where it does not fire, and what it cannot do without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitwright.cachemaps import CacheMaps
from bitwright.errors import InternalError, UnsupportedError
from bitwright.keymap import HeadMap
from bitwright.passes.annotate import Annotate
from bitwright.passes.map_keys import MapKeys
from bitwright.plan import uniform_plan
from bitwright.program import Program
from bitwright.scheme import CacheScheme, LinearScheme
from tests.passes.ir import named

RNG = np.random.default_rng(3)


def annotated(program: Program, keys: str, values: str = "v16") -> Program:
    plan = uniform_plan(program.sites, LinearScheme.parse("u4g32a8"), table=None, cache_bits=16, model="m", target="t")
    caches = {"layer.1.k_cache": CacheScheme.parse(keys), "layer.1.v_cache": CacheScheme.parse(values)}
    return Annotate(replace(plan, schemes={**plan.schemes, **caches}))(program)


def a_map() -> HeadMap:
    return HeadMap(
        *(
            np.abs(RNG.standard_normal(shape)).astype("float32")
            for shape in ((1, 32, 32), (1, 32, 32), (1, 32), (1, 32))
        )
    )


def test_queries_and_keys_of_the_mapped_layer_are_multiplied(prepare: Any) -> None:
    maps = a_map()
    program = MapKeys(CacheMaps({1: maps}))(annotated(prepare(layers=2), "k4rowm"))
    calls = named(program, "head_map")
    assert [int(call.attrs["heads"]) for call in calls] == [3, 1]
    assert [[argument.name for argument in call.args[1:]] for call in calls] == [
        ["layer.1.query_map"],
        ["layer.1.key_map", "layer.1.key_shift"],
    ]
    stored = maps.mixed(False).halves("layer.1.k_cache")
    expected = {"query_map": stored.inverse.transpose(0, 2, 1), "key_map": stored.forward, "key_shift": stored.shift}
    for name, array in expected.items():
        parameter = program.parameters[f"layer.1.{name}"]
        assert parameter.dtype == ("float32" if name == "key_shift" else "float16") == parameter.load().dtype
        np.testing.assert_array_equal(parameter.load(), array)
    assert [str(call.attrs["k_scheme"]) for call in named(program, "attention")] == ["k16", "k4rowm"]
    assert program.events["map_keys"] == {"layers": 1}


def test_values_are_mapped_and_sums_mapped_back(prepare: Any) -> None:
    maps = a_map()
    program = MapKeys(CacheMaps(values={1: maps}))(annotated(prepare(layers=2), "k16", "v4rowm"))
    calls = named(program, "head_map")
    assert [(int(call.attrs["heads"]), call.args[1].name) for call in calls] == [
        (1, "layer.1.value_map"),
        (3, "layer.1.value_map_back"),
    ]
    there, back = (program.parameters[call.args[1].name].load() for call in calls)
    stored = maps.mixed(False).halves("layer.1.v_cache")
    for found, expected in ((there, stored.forward), (back, stored.inverse)):
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected)
    assert [str(call.attrs["v_scheme"]) for call in named(program, "attention")] == ["v16", "v4rowm"]


def test_other_keys_are_left_alone(prepare: Any) -> None:
    before = annotated(prepare(layers=2), "k4row")
    after = MapKeys(CacheMaps({1: a_map()}))(before)
    assert not named(after, "head_map")
    assert "map_keys" not in after.events


def test_a_layer_without_a_map_is_an_error(prepare: Any) -> None:
    with pytest.raises(InternalError, match=r"no map was calibrated for layer.1.k_cache"):
        MapKeys(CacheMaps({0: a_map()}))(annotated(prepare(layers=2), "k4rowm"))


def test_a_map_that_does_not_fit_halves_is_refused_with_its_cache(prepare: Any) -> None:
    maps = a_map()
    maps.forward[0, 3] = 1e-20
    with pytest.raises(UnsupportedError, match=r"the map of layer.1.v_cache does not fit half precision"):
        MapKeys(CacheMaps(values={1: maps}))(annotated(prepare(layers=2), "k16", "v4rowm"))
