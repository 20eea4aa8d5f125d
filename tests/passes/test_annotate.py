"""The plan goes into the IR, and only a plan that fits the model does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bitwright.errors import InputError
from bitwright.passes.annotate import Annotate
from bitwright.plan import Plan, uniform_plan
from bitwright.scheme import LinearScheme
from tests.passes.ir import named


def _plan(program: Any, **changes: str) -> Plan:
    plan = uniform_plan(program.sites, LinearScheme.parse("u4g32a8"), table=None, cache_bits=16, model="m", target="t")
    return replace(plan, schemes={**plan.schemes, **{k: LinearScheme.parse(v) for k, v in changes.items()}})


def test_every_call_carries_its_scheme_and_prints_it(prepare: Any) -> None:
    program = prepare(layers=1)
    annotated = Annotate(_plan(program, **{"layer.0.o": "u6g32a16"}))(program)
    schemes = {str(c.attrs["site"]): str(c.attrs["scheme"]) for c in named(annotated, "linear")}
    assert schemes["layer.0.q"] == "u4g32a8" and schemes["layer.0.o"] == "u6g32a16"
    (attention,) = named(annotated, "attention")
    assert (attention.attrs["k_scheme"], attention.attrs["v_scheme"]) == ("k16", "v16")
    assert '"scheme": "u6g32a16"' in annotated.module.script()


def test_a_plan_that_misses_a_site_is_refused(prepare: Any) -> None:
    program = prepare(layers=1)
    plan = _plan(program)
    schemes = {k: v for k, v in plan.schemes.items() if k != "layer.0.o"}
    with pytest.raises(InputError, match="misses 1 sites") as caught:
        Annotate(replace(plan, schemes=schemes))(program)
    assert "layer.0.o" in str(caught.value)


def test_a_plan_that_names_an_unknown_site_is_refused(prepare: Any) -> None:
    program = prepare(layers=1)
    with pytest.raises(InputError, match="names 1 that the model does not have"):
        Annotate(_plan(program, **{"layer.9.q": "u4g32a8"}))(program)


def test_a_cache_scheme_on_a_linear_layer_is_refused(prepare: Any) -> None:
    from bitwright.scheme import CacheScheme

    program = prepare(layers=1)
    plan = _plan(program)
    with pytest.raises(InputError, match="does not fit a site of kind linear"):
        Annotate(replace(plan, schemes={**plan.schemes, "layer.0.o": CacheScheme("k")}))(program)
