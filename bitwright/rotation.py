"""Rotations for a compilation: the same function through orthonormal matrices that spread what sticks out.

A rotated model is a model of its own with a digest of its own: it is calibrated, profiled, distilled and planned for as
any other. What can be rotated:

* ``residual``: what runs from the embedding through all layers to the head;
* ``value``: the values of every attention, per key/value head;
* ``hidden``: what a feed-forward layer's last matrix reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from bitwright.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from bitwright.frontend.graph import Editor
    from bitwright.frontend.model import ImportedModel

Part = Literal["residual", "value", "hidden"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Rotated:
    """A model after rotation.

    Attributes:
        model: computes what the model it was made from computes.
        places: how many tensors or values were rotated, by part.
    """

    model: ImportedModel
    places: Mapping[Part, int]


def parse_parts(text: str) -> tuple[Part, ...]:
    """``residual,value`` as parts, in the order of PARTS, each once.

    Raises:
        UsageError: something else.
    """
    named = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in named if part not in PARTS]
    if unknown or not named:
        raise UsageError(
            f"'{(unknown or [text])[0]}' cannot be rotated", where="--rotate", limit=f"any of {', '.join(PARTS)}"
        )
    return tuple(part for part in PARTS if part in named)


def rotated(model: ImportedModel, parts: Iterable[Part]) -> Rotated:
    """Rotate ``parts`` of a model; the original is left as it is, and shares the tensors that do not change.

    Raises:
        UnsupportedError: the model has nothing of the kind, or a residual stream that cannot be rotated.
    """
    from bitwright.frontend.graph import Editor, sweep

    graph = model.graph.clone()
    editor = Editor(graph)
    places = {part: _rotate(part, editor) for part in PARTS if part in set(parts)}
    for part, count in places.items():
        if not count:
            raise UnsupportedError(
                f"the model has no {part} that can be rotated",
                where=f"--rotate, {model.name}",
                remedy=f"leave {part} out of --rotate",
            )
    sweep(graph)
    digest = hashlib.sha256(f"{model.digest} rotated {' '.join(places)}".encode()).hexdigest()
    return Rotated(replace(model, graph=graph, digest=digest), places)


def as_rotated(model: ImportedModel, parts: Iterable[Part]) -> ImportedModel:
    """The model that ``parts`` of are rotated; the same if there are none."""
    wanted = tuple(parts)
    return rotated(model, wanted).model if wanted else model


def _rotate(part: Part, editor: Editor) -> int:
    from bitwright.frontend.rotate.hidden import rotate_hidden
    from bitwright.frontend.rotate.stream import rotate_stream

    if part == "residual":
        return rotate_stream(editor)
    return rotate_hidden(editor) if part == "hidden" else _rotate_values(editor.model)


def _rotate_values(graph: ir.Model) -> int:
    from bitwright.frontend.rotate.values import map_values, value_places
    from bitwright.keymap import mixing

    places = value_places(graph)
    for place in places:
        map_values(graph, place, np.broadcast_to(mixing(place.size), (place.kv_heads, place.size, place.size)))
    return len(places)
