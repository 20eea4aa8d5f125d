"""The maps of a model's caches, and the file that keeps them in a profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import InputError
from bitwright.keymap import HeadMap
from bitwright.site import Site

FILE = "cache_maps.safetensors"

KEY_TENSORS = ("query_map", "key_map", "key_shift")
VALUE_TENSORS = ("value_map", "value_map_back")
"""What an artifact stores of a layer's maps, as ``layer.3.query_map``: matrices in halves, the shift in singles."""


def mapped_cache(tensor: str) -> str:
    """The site of the cache that an artifact's tensor maps; empty if it is no map."""
    layer, _, name = tensor.rpartition(".")
    return f"{layer}.k_cache" if name in KEY_TENSORS else f"{layer}.v_cache" if name in VALUE_TENSORS else ""


@dataclass(frozen=True)
class CacheMaps:
    """Maps by layer, of keys and of values, as calibration found them: in single precision, not mixed.

    ``folded``: layers whose weights map the values already, and map them back.
    """

    keys: Mapping[int, HeadMap] = field(default_factory=dict)
    values: Mapping[int, HeadMap] = field(default_factory=dict)
    folded: frozenset[int] = frozenset()

    @classmethod
    def announced(cls, sites: Iterable[Site], folded: Iterable[int]) -> CacheMaps:
        """Identities for all caches among ``sites``, for whoever wants to know what would be stored."""
        parts: tuple[dict[int, HeadMap], dict[int, HeadMap]] = {}, {}
        for site in sites:
            if site.kind in ("k_cache", "v_cache"):
                heads, width = site.shape
                identity = np.tile(np.eye(width, dtype=np.float32), (heads, 1, 1))
                zeros = np.zeros((heads, width), np.float32)
                parts[site.kind == "v_cache"][int(site.name.split(".")[1])] = HeadMap(identity, identity, zeros, zeros)
        return cls(*parts, frozenset(folded))

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
            keys, values = (
                {layer: HeadMap(**found) for layer, found in parts[letter].items()} for letter in ("k", "v")
            )
            return cls(keys, values)
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
        """The map, not mixed yet, of a cache's site, by its name; None if it has none."""
        _, layer, cache = site.split(".")
        return (self.keys if cache == "k_cache" else self.values).get(int(layer))
