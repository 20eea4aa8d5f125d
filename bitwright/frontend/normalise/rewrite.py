"""What a rewrite is, and how a list of them is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bitwright.errors import InternalError
from bitwright.frontend.graph import Editor, sweep

MAX_ROUNDS = 64


@dataclass(frozen=True)
class Key:
    """An op this rewrite starts from: ``op`` of ``domain`` in opset versions ``since``..``until`` of that domain."""

    op: str
    domain: str = ""
    since: int = 13
    until: int = 25

    def matches(self, node: ir.Node, version: int) -> bool:
        return node.op_type == self.op and node.domain == self.domain and self.since <= version <= self.until


@dataclass(frozen=True)
class Rewrite:
    """One way to bring a graph closer to canonical form.

    Attributes:
        name: for people.
        keys: the ops it starts from; any of them.
        apply: edits the graph around one such node; returns whether it changed anything. It must leave the graph
            alone when the pattern
            does not fit.
    """

    name: str
    keys: tuple[Key, ...]
    apply: Callable[[ir.Node, Editor], bool]

    def run(self, editor: Editor) -> int:
        """Try every node once, in order; return how many times it applied."""
        count = 0
        imports = editor.model.opset_imports
        for node in list(editor.graph):
            if node.graph is None:  # removed by an earlier application
                continue
            if any(key.matches(node, imports.get(node.domain, 1)) for key in self.keys):
                count += bool(self.apply(node, editor))
        return count


def run_to_fixpoint(rewrites: Sequence[Rewrite], editor: Editor) -> None:
    """Run all rewrites over and over until none applies; dead nodes are swept in between."""
    for _ in range(MAX_ROUNDS):
        changed = 0
        for rewrite in rewrites:
            applied = rewrite.run(editor)
            if applied:
                sweep(editor.model)
            changed += applied
        if not changed:
            return
    raise InternalError(
        "the rewrites do not come to rest",
        where=", ".join(r.name for r in rewrites),
        limit=f"{MAX_ROUNDS} rounds",
        remedy="report this model",
    )
