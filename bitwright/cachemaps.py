"""The maps of a model's caches, and the file that keeps them in a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import InputError
from bitwright.keymap import HeadMap

FILE = "cache_maps.safetensors"


@dataclass(frozen=True)
class CacheMaps:
    """Maps by layer, of keys and of values."""

    keys: Mapping[int, HeadMap] = field(default_factory=dict)
    values: Mapping[int, HeadMap] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> CacheMaps:
        """Those that :meth:`write` kept in ``folder``; none where it kept none.

        Raises:
            InputError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / FILE
        if not path.is_file():
            return cls()
        parts: dict[str, dict[int, dict[str, Any]]] = {"k": {}, "v": {}}
        try:
            for name, array in load_file(path).items():
                letter, layer, part = name.split(".")
                parts[letter].setdefault(int(layer), {})[part] = array
            return cls(*({layer: HeadMap(**found) for layer, found in parts[letter].items()} for letter in "kv"))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "the maps of caches cannot be read",
                where=str(path),
                limit=str(error),
                remedy="delete the file and the scores beside it, and repeat `bitwright profile`",
            ) from error

    def write(self, folder: Path) -> None:
        """Keep them in ``folder``; a file that was cut off is never read."""
        from safetensors.numpy import save_file

        arrays = {
            f"{letter}.{layer}.{part}": np.ascontiguousarray(array)
            for letter, maps in (("k", self.keys), ("v", self.values))
            for layer, found in maps.items()
            for part, array in vars(found).items()
        }
        part = folder / f"{FILE}.part"
        save_file(arrays, part)
        part.replace(folder / FILE)

    def of(self, site: str) -> HeadMap | None:
        """The map of a cache's site, by its name; None if it has none."""
        _, layer, cache = site.split(".")
        return (self.keys if cache == "k_cache" else self.values).get(int(layer))
