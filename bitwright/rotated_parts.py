"""What of a model can be rotated.

* ``residual``: what runs from the embedding through all layers to the head;
* ``value``: the values of every attention, per key/value head;
* ``hidden``: what a feed-forward layer's last matrix reads.
"""

from __future__ import annotations

from typing import Literal, get_args

from bitwright.errors import UsageError

Part = Literal["residual", "value", "hidden"]
PARTS: tuple[Part, ...] = get_args(Part)


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
