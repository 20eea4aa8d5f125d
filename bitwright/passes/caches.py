"""What a plan makes of a model's caches: shape and schemes of each layer's K and V, as kernels see them."""

from __future__ import annotations

from bitwright.codegen.cache import CacheSpec
from bitwright.plan import Plan
from bitwright.program import Program
from bitwright.scheme import CacheScheme


def cache_specs(program: Program, plan: Plan | None) -> tuple[CacheSpec, ...]:
    """One per cached attention, in order; without a plan the float32 caches that import makes."""
    specs = []
    for layer, shape in enumerate(program.caches):
        key, value = (_scheme(plan, layer, letter) for letter in "kv")
        specs.append(CacheSpec(shape.kv_heads, shape.head_dim, shape.value_dim, program.capacity, key, value))
    return tuple(specs)


def _scheme(plan: Plan | None, layer: int, letter: str) -> CacheScheme:
    if plan is None:
        return CacheScheme(letter, 32)  # type: ignore[arg-type]  # k or v
    scheme = plan.schemes[f"layer.{layer}.{letter}_cache"]
    assert isinstance(scheme, CacheScheme), "Plan.check_sites has seen to it"
    return scheme
