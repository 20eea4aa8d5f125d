"""Rotations for a compilation: the same function through orthonormal matrices that spread what sticks out.

Matrices of Hadamard's kind (``bitwright.hadamard``) stand between layers and are folded into their weights; where they
cannot be, the graph rotates on the fly. Moments of the model's activations become those of the rotated ones: factors
are moved between layers (``equalisation.py``) before, for there is little left to equalise behind a rotation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bitwright.errors import UnsupportedError
from bitwright.rotated_parts import PARTS, Part

if TYPE_CHECKING:
    import onnx_ir as ir

    from bitwright.frontend.graph import Editor
    from bitwright.frontend.model import ImportedModel
    from bitwright.frontend.rotate.change import Change
    from bitwright.moments import Moments, RowMap


@dataclass(frozen=True)
class Rotated:
    """A model after rotation.

    Attributes:
        model: computes what the model it was made from computes, and keeps its digest.
        moments: of its activations, if those of the model were given.
        places: how many tensors or values were rotated, by part.
        digest: sha256 of what was rotated.
    """

    model: ImportedModel
    moments: Moments | None
    places: Mapping[str, int]
    digest: str


def rotated(model: ImportedModel, parts: Iterable[Part], moments: Moments | None = None) -> Rotated:
    """Rotate ``parts`` of a model; the original is left as it is, and shares the tensors that do not change.

    Raises:
        UnsupportedError: the model has nothing of the kind, or a residual stream that cannot be rotated.
    """
    from bitwright.frontend.graph import Editor, sweep

    graph = model.graph.clone()
    editor, wanted = Editor(graph), set(parts)
    places: dict[str, int] = {}
    for part in (part for part in PARTS if part in wanted):
        change = _rotate(part, editor)
        if not change.places:
            raise UnsupportedError(
                f"the model has no {part} that can be rotated",
                where=f"--rotate, {model.name}",
                remedy=f"leave {part} out of --rotate",
            )
        places[part] = change.places
        moments = None if moments is None else moments.mapped(change.maps)
    sweep(graph)
    return Rotated(replace(model, graph=graph), moments, places, hashlib.sha256(repr(places).encode()).hexdigest())


def _rotate(part: Part, editor: Editor) -> Change:
    from bitwright.frontend.rotate.hidden import rotate_hidden
    from bitwright.frontend.rotate.stream import rotate_stream

    if part == "residual":
        return rotate_stream(editor)
    return rotate_hidden(editor) if part == "hidden" else _rotate_values(editor.model)


def _rotate_values(graph: ir.Model) -> Change:
    from bitwright.frontend.rotate.change import Change
    from bitwright.frontend.rotate.values import map_values, value_places
    from bitwright.keymap import mixing

    places = value_places(graph)
    maps: dict[str, RowMap] = {}
    for place in places:
        matrices = np.broadcast_to(mixing(place.size), (place.kv_heads, place.size, place.size))
        maps.update(map_values(graph, place, matrices))
    return Change(len(places), maps)
