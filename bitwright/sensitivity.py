"""Profiles: what every scheme of every site of a model costs in quality, and what it would store. A folder of files.

``<folder>/profile.json`` says what was profiled (:class:`ProfileHeader`); ``<folder>/scores/NNNN.safetensors`` holds
the scores of site number NNNN (:class:`SiteScores`), one file as soon as a site is done, so that an interrupted profile
goes on. All losses are in one unit: expected Kullback-Leibler divergence from the float model, nats per token (for the
metrics that are calibrated in it; others say so in the header). Losses of different sites, of a weight and of its
activation, add up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.errors import InputError
from bitwright.rotated_parts import Part
from bitwright.runs import ROW_MULTIPLE
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.site import Site

PROFILE_VERSION = 5
TILE_ROWS = ROW_MULTIPLE
"""Rows of a tile, the unit in which losses of weights are stored: rows 64 i ... 64 i + 63 of a matrix."""

A16_SHARE = 2.0**-14
"""Loss of 16-bit activations over that of 8-bit ones: steps are 2**7 times finer, and losses are quadratic in them."""

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SiteScores:
    """Losses of one site.

    Attributes:
        site: its name.
        weights: weight scheme name to float64 [tiles]: loss when the rows of a tile are quantized so.
        activations: name of 8-bit activations by group (``a8g32``, ``a8row``) to float64 [tiles]: loss that reading
            the input so adds to a tile's outputs.
        caches: cache scheme name to loss, of a cache site.
        peak: largest magnitude of the input over the median one, of a linear layer; None where it is not known.
    """

    site: str
    weights: Mapping[str, Losses] = field(default_factory=dict)
    activations: Mapping[str, Losses] = field(default_factory=dict)
    caches: Mapping[str, float] = field(default_factory=dict)
    peak: float | None = None

    def linear(self, scheme: LinearScheme) -> Losses:
        """Loss of every tile with this scheme of weights and activation, float64 [tiles].

        Raises:
            InputError: the scheme was not profiled.
        """
        weight, tiles = scheme.weight, next(iter(self.weights.values()), np.zeros(0)).shape
        if weight.is_float:
            return np.zeros(tiles)
        if weight.name not in self.weights:
            raise InputError(
                f"{weight} was not profiled",
                where=f"site {self.site}",
                limit=f"profiled: {', '.join(self.weights)}",
                remedy="profile again with --schemes",
            )
        read = self.activations.get(activation_key(scheme))
        if read is None:
            return self.weights[weight.name].copy()
        return self.weights[weight.name] + read * (1.0 if scheme.activation.bits == 8 else A16_SHARE)


def activation_key(scheme: LinearScheme) -> str:
    """The name under which :class:`SiteScores` holds what 8-bit activations in the weights' groups cost."""
    return f"a8g{scheme.weight.group}" if scheme.weight.group else "a8row"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the artifact that no choice of weights changes.

    ``positions``: its rows are the positions of the context. ``cache``: it is there only if this site's scheme is
    mapped.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    positions: bool = False
    cache: str = ""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix of the artifact: the rows of ``sites`` stacked, packed as the plan says, under the name ``name``."""

    name: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class ProfileHeader:
    """What was profiled, and how.

    Attributes:
        model: as the user named it; ``name`` for people; ``digest`` of the canonical model.
        target: fingerprint; ``target_name`` as ``Target.parse`` reads it; ``isa`` and its ``lanes``; ``cores``.
        sites: all sites, in the model's order.
        storage: the artifact's tensors, in the order of its file.
        weights: weight schemes profiled, where legal; ``caches``: cache schemes; ``table_weights``: of matrices with a
            row per token, besides.
        metric: name of the metric; ``unit`` of its losses.
        quantizer: its name; ``moments``: digest of what it calibrated on (empty if it does not).
        calibration: digest of the windows the gradients were taken on; ``tokens``: their number.
        seed: of sampled labels.
        equalised: digest of the factors that were moved between layers first; empty if none were.
        reordered: digest of the order of hidden units and token rows; empty if they were left where they stood.
        rotated: what was rotated then.
        weighed: tokens counted by gradients in calibration.
    """

    model: str
    name: str
    digest: str
    target: str
    target_name: str
    isa: str
    lanes: int
    cores: int
    sites: tuple[Site, ...]
    storage: tuple[StoredTensor | StoredMatrix, ...]
    weights: tuple[str, ...]
    caches: tuple[str, ...]
    metric: str
    unit: str
    quantizer: str
    moments: str
    calibration: str
    tokens: int
    seed: int = 0
    rotated: tuple[Part, ...] = ()
    equalised: str = ""
    reordered: str = ""
    weighed: bool = False
    table_weights: tuple[str, ...] = ()

    @property
    def positions(self) -> int | None:
        """Rows of the model's tables of positions, as it is compiled without a context; None: it has none."""
        tensors = (entry for entry in self.storage if isinstance(entry, StoredTensor))
        return next((tensor.shape[0] for tensor in tensors if tensor.positions), None)

    def map_bytes(self, site: str, scheme: CacheScheme) -> int:
        """Bytes of the matrices that map a cache of ``scheme`` and map it back in every step."""
        if not scheme.mapped:
            return 0
        return sum(entry.nbytes for entry in self.storage if isinstance(entry, StoredTensor) and entry.cache == site)

    @property
    def compile_options(self) -> tuple[str, ...]:
        """What ``bitwright compile`` must be told so that weights become what was profiled."""
        flags = {"--weigh-tokens": self.weighed, "--equalise": self.equalised, "--reorder": self.reordered}
        given = (*(name for name, on in flags.items() if on),)
        rotated = (f"--rotate {','.join(self.rotated)}",) if self.rotated else ()
        return (f"--quantizer {self.quantizer}", *given, *rotated)

    def to_json(self) -> str:
        """Byte-stable."""
        return json.dumps({"profile_version": PROFILE_VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> ProfileHeader:
        """Raises InputError: it is no profile, or one of another version."""
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.pop("profile_version", None) != PROFILE_VERSION:
                raise InputError(
                    "the profile has an unknown version",
                    where=where,
                    limit=f"profile_version {PROFILE_VERSION}",
                    remedy="profile the model again with this version of bitwright",
                )
            sites = tuple(Site(**{**site, "shape": tuple(site["shape"])}) for site in document.pop("sites"))
            storage = tuple(_stored(entry) for entry in document.pop("storage"))
            names: dict[str, Any] = {
                key: tuple(document.pop(key, ())) for key in ("weights", "table_weights", "caches", "rotated")
            }
            return cls(sites=sites, storage=storage, **names, **document)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                "the profile is damaged", where=where, limit=str(error), remedy="profile the model again"
            ) from error

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)


def _stored(entry: Mapping[str, Any]) -> StoredTensor | StoredMatrix:
    if "sites" in entry:
        return StoredMatrix(entry["name"], tuple(entry["sites"]))
    return StoredTensor(**{**entry, "shape": tuple(entry["shape"])})


_NO_PART_IN_SCORES = frozenset({"model", "target", "cores"})
"""Fields that may differ: what the user calls the model, and the machine beyond its name and instruction set."""


@dataclass(frozen=True)
class Profile:
    """A profile's folder."""

    folder: Path
    header: ProfileHeader

    @classmethod
    def begin(cls, folder: Path, header: ProfileHeader) -> Profile:
        """Make a folder, or go on with one that was begun with the same header.

        Raises:
            InputError: the folder holds another profile or cannot be written.
        """
        path = folder / "profile.json"
        if path.exists():
            old = cls.header_of(folder)
            differing = [f.name for f in fields(header) if getattr(old, f.name) != getattr(header, f.name)]
            if differing := [name for name in differing if name not in _NO_PART_IN_SCORES]:
                raise InputError(
                    "the folder holds a profile of something else",
                    where=f"{folder}: {', '.join(differing)}",
                    limit="to go on, model, instruction set, schemes, metric, quantizer and calibration are the same",
                    remedy="choose another folder or remove this one",
                )
            return cls(folder, old)
        try:
            (folder / "scores").mkdir(parents=True, exist_ok=True)
            _replace(path, header.to_json().encode())
        except OSError as error:
            raise InputError(
                "the profile cannot be written", where=str(folder), limit=error.strerror, remedy="choose another folder"
            ) from error
        return cls(folder, header)

    @classmethod
    def read(cls, folder: Path) -> Profile:
        """A complete profile.

        Raises:
            InputError: there is none, or some site is missing.
        """
        profile = cls(folder, cls.header_of(folder))
        missing = [site.name for site in profile.header.sites if not profile.has(site.name)]
        if missing:
            raise InputError(
                f"the profile lacks {len(missing)} of {len(profile.header.sites)} sites",
                where=f"{folder}: {', '.join(missing[:5])}",
                remedy="repeat `bitwright profile`: it goes on where it was interrupted",
            )
        return profile

    @staticmethod
    def header_of(folder: Path) -> ProfileHeader:
        """Of a profile that may not be complete.

        Raises:
            InputError: there is none, or it is damaged.
        """
        path = folder / "profile.json"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "there is no profile here", where=str(folder), remedy="make one with `bitwright profile MODEL -o DIR`"
            ) from error
        return ProfileHeader.from_json(text, str(path))

    def has(self, site: str) -> bool:
        return self._path(site).is_file()

    def put(self, scores: SiteScores) -> None:
        """Keep a site's scores; a file that was cut off is never read."""
        from safetensors.numpy import save

        arrays = {f"weight/{name}": losses for name, losses in scores.weights.items()}
        arrays |= {f"activation/{name}": losses for name, losses in scores.activations.items()}
        arrays |= {f"cache/{name}": np.full(1, loss) for name, loss in scores.caches.items()}
        arrays |= {} if scores.peak is None else {"input/peak": np.full(1, scores.peak)}
        ready = {name: np.ascontiguousarray(array, dtype="<f8") for name, array in sorted(arrays.items())}
        _replace(self._path(scores.site), save(ready))

    def scores(self, site: str) -> SiteScores:
        """Raises InputError: the file is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self._path(site)
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"the scores of {site} cannot be read",
                where=str(path),
                limit=str(error),
                remedy="delete the file and repeat `bitwright profile`",
            ) from error
        parts: dict[str, dict[str, Any]] = {"weight": {}, "activation": {}, "cache": {}, "input": {}}
        for name, array in arrays.items():
            kind, _, scheme = name.partition("/")
            parts[kind][scheme] = float(array[0]) if kind in ("cache", "input") else array
        return SiteScores(site, parts["weight"], parts["activation"], parts["cache"], parts["input"].get("peak"))

    @property
    def digest(self) -> str:
        """sha256 of all it says: what a plan names that was computed from it."""
        state = hashlib.sha256(self.header.to_json().encode())
        for site in self.header.sites:
            state.update(self._path(site.name).read_bytes())
        return state.hexdigest()

    def _path(self, site: str) -> Path:
        number = next(i for i, known in enumerate(self.header.sites) if known.name == site)
        return self.folder / "scores" / f"{number:04d}.safetensors"


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
