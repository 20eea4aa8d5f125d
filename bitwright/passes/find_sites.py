"""Find the decision points of a model by structure and write their names into the IR.

In: functions with ``bitwright.linear``, ``bitwright.embedding`` and ``bitwright.attention`` calls whose ``site`` is
empty.
Out: the same functions with ``site`` attributes, ``program.sites`` in the order of the graph, and what later passes
fuse out of sight: the names of the rotary tables, and the multiply-adds of a prompt.

A linear layer is named by its place around the attentions: ``layer.3.q``, ``.k``, ``.v`` (or ``.qkv`` when one
matrix feeds all)
lead into attention 3, ``layer.3.o`` reads its result, ``layer.3.mlp.0``, ``.1``, ... follow. ``table`` is the token
table,
``head`` an untied output matrix.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tvm import relax, tirx

from bitwright import relax_ops
from bitwright.errors import UnsupportedError
from bitwright.passes.base import bindings, functions, operands, rewrite
from bitwright.program import Program
from bitwright.site import Site

_ATTENTIONS = ("attention", "attention_full")


@dataclass(frozen=True)
class FindSites:
    """See the module's description."""

    name: str = "find_sites"

    def __call__(self, program: Program) -> Program:
        # Every entry point is the same graph; the one that keeps all rows shows it without cuts.
        entry = "score" if program.kind == "decoder" else "encode"
        function = dict(functions(program.module))[entry]
        names = _Namer(function).names()
        sites = (*_weight_sites(function, names), *_cache_sites(program))
        if not any(site.weight for site in sites):
            raise UnsupportedError("the model has no weight matrices", remedy="is this a language model?")

        def visit(_rewriter: Any, _variable: Any, value: Any) -> Any:
            if relax_ops.name_of(value) in ("linear", "embedding"):
                return relax_ops.with_attributes(value, site=names[value.args[1].name])
            return None

        module = rewrite(program.module, visit)
        macs = _prefill_macs(program.module)
        return replace(program, module=module, sites=sites, rotary_tables=_rotary_tables(function), prefill_macs=macs)


class _Namer:
    """Names of weights by structural role."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.producer = {b.var: b.value for b in bindings(function)}
        self.users: dict[Any, list[Any]] = defaultdict(list)
        for b in bindings(function):
            for argument in operands(b.value):
                self.users[argument].append(b)

    def names(self) -> dict[str, str]:
        """Weight parameter name to site name."""
        roles: dict[str, str] = {}
        calls = [b for b in bindings(self.function) if relax_ops.name_of(b.value)]
        self._name_tables([b for b in calls if relax_ops.name_of(b.value) == "embedding"], roles)
        attentions = [b for b in calls if relax_ops.name_of(b.value) in _ATTENTIONS]
        for layer, binding in enumerate(attentions):
            self._name_inputs(layer, binding.value, roles)
        layer, counts = -1, defaultdict(int)  # type: ignore[var-annotated]
        waiting_for_output = False
        for b in calls:
            kind = relax_ops.name_of(b.value)
            if kind in _ATTENTIONS:
                layer, waiting_for_output = layer + 1, True
            if kind != "linear" or b.value.args[1].name in roles:
                continue
            place = f"layer.{layer}" if layer >= 0 else "input"
            if self._reaches_output(b.var):
                role = "head"
            elif waiting_for_output:
                role, waiting_for_output = f"{place}.o", False
            else:
                role = f"{place}.mlp.{counts[layer]}"
                counts[layer] += 1
            roles[b.value.args[1].name] = _unused(role, roles)
        return roles

    def _name_tables(self, embeddings: list[Any], roles: dict[str, str]) -> None:
        tokens = self.function.params[0]
        for b in embeddings:
            weight = b.value.args[1].name
            if weight not in roles:
                roles[weight] = _unused("table" if b.value.args[0].same_as(tokens) else "table.extra", roles)

    def _name_inputs(self, layer: int, attention: Any, roles: dict[str, str]) -> None:
        parts: dict[str, str] = {}
        for letter, operand in zip("qkv", attention.args[:3], strict=True):
            weight = self._nearest_linear(operand)
            if weight is not None:
                parts[weight] = parts.get(weight, "") + letter
        for weight, letters in parts.items():
            if weight not in roles:
                roles[weight] = _unused(f"layer.{layer}.{letters}", roles)

    def _nearest_linear(self, start: Any) -> str | None:
        stack, seen = [start], set()
        while stack:
            variable = stack.pop()
            if variable in seen or variable not in self.producer:
                continue
            seen.add(variable)
            value = self.producer[variable]
            kind = relax_ops.name_of(value)
            if kind == "linear":
                return str(value.args[1].name)
            if kind not in _ATTENTIONS:
                stack.extend(operands(value))
        return None

    def _reaches_output(self, start: Any) -> bool:
        """Does the value reach the function's result without another linear layer or attention?"""
        output, stack, seen = self.function.body.body, [start], set()
        while stack:
            variable = stack.pop()
            if variable.same_as(output):
                return True
            if variable in seen:
                continue
            seen.add(variable)
            users = self.users[variable]
            stack.extend(b.var for b in users if relax_ops.name_of(b.value) not in ("linear", *_ATTENTIONS))
        return False


def _unused(role: str, roles: dict[str, str]) -> str:
    taken = set(roles.values())
    if role not in taken:
        return role
    return next(candidate for i in range(1, len(taken) + 2) if (candidate := f"{role}.{i}") not in taken)


def _weight_sites(function: Any, names: dict[str, str]) -> tuple[Site, ...]:
    linears: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    readers: dict[Any, list[str]] = defaultdict(list)
    for b in bindings(function):
        kind = relax_ops.name_of(b.value)
        if kind not in ("linear", "embedding"):
            continue
        weight = b.value.args[1].name
        (tables if kind == "embedding" else linears)[weight] = b.value
        if kind == "linear":
            readers[b.value.args[0]].append(weight)
    group_of = {weight: names[members[0]] for members in readers.values() if len(members) > 1 for weight in members}
    sites = []
    for weight, role in names.items():
        call = tables.get(weight, linears.get(weight))
        assert call is not None, weight
        outputs, inputs = (int(d) for d in call.args[1].ty.shape.values)
        is_table = weight in tables
        linear = linears.get(weight)
        sites.append(
            Site(
                role,
                "table" if is_table else "linear",
                (outputs, inputs),
                weight,
                group="" if is_table else group_of.get(weight, ""),
                tied=is_table and linear is not None,
                bias=linear is not None and len(linear.args) > 2,
            )
        )
    order = {b.value.args[1].name: i for i, b in reversed(list(enumerate(bindings(function)))) if _has_weight(b)}
    return tuple(sorted(sites, key=lambda site: order[site.weight]))


def _rotary_tables(function: Any) -> frozenset[str]:
    parameters = {v.name for v in function.params}
    tables = [t for b in bindings(function) if relax_ops.name_of(b.value) == "rope" for t in b.value.args[1:3]]
    return frozenset(table.name for table in tables if isinstance(table, relax.Var) and table.name in parameters)


def _prefill_macs(module: Any) -> tuple[int, int]:
    """Multiply-adds of linear layers in ``prefill``: those of all rows, per row, and those of the last row alone."""
    every, last = 0, 0
    entries = dict(functions(module))
    for b in bindings(entries["prefill"]) if "prefill" in entries else ():
        if relax_ops.name_of(b.value) == "linear":
            rows, matrix = b.value.args[0].ty.shape.values[0], b.value.args[1].ty.shape.values
            size = prod(int(extent) for extent in matrix)
            every, last = (every, last + size) if isinstance(rows, tirx.IntImm) else (every + size, last)
    return every, last


def _has_weight(binding: Any) -> bool:
    return relax_ops.name_of(binding.value) in ("linear", "embedding")


def _cache_sites(program: Program) -> tuple[Site, ...]:
    sites = []
    for i, shape in enumerate(program.caches):
        sites.append(Site(f"layer.{i}.k_cache", "k_cache", (shape.kv_heads, shape.head_dim)))
        sites.append(Site(f"layer.{i}.v_cache", "v_cache", (shape.kv_heads, shape.value_dim)))
    return tuple(sites)
