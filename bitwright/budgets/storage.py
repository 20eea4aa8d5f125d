"""Exact bytes of an artifact's weights for any plan, from a profile alone: no model, no compiler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.cachemaps import mapped_cache
from bitwright.codegen.layout import packed_layout
from bitwright.program import CACHE_BLOCK
from bitwright.runs import MixedScheme, Scheme, first_rows, joined_runs, runs_of
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.sensitivity import ProfileHeader, StoredMatrix, StoredTensor
from bitwright.site import Site

if TYPE_CHECKING:
    from bitwright.program import Program


@dataclass(frozen=True)
class Announced:
    """A tensor that is never made: its type and shape are all that a file's size depends on."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __array__(self) -> np.ndarray[Any, Any]:
        return np.zeros(self.shape, self.dtype)


def weights_file_bytes(header: ProfileHeader, schemes: Mapping[str, Scheme], context: int | None = None) -> int:
    """Size of the weights' file of an artifact compiled with ``schemes`` for a context of ``context`` tokens."""
    from bitwright.runtime.artifact.tensorfile import file_bytes

    return file_bytes(dict(_tensors(header, schemes, context)))


def cache_bytes_per_token(header: ProfileHeader, schemes: Mapping[str, Scheme]) -> int:
    """Bytes of K and V of one position, all layers."""
    return sum(scheme.bytes_per_token(*shape) for scheme, shape in _caches(header, schemes))


def cache_fixed_bytes(header: ProfileHeader, schemes: Mapping[str, Scheme]) -> int:
    """Bytes of K and V besides those of positions, all layers: tokens that are kept exact."""
    return sum(scheme.fixed_bytes(*shape) for scheme, shape in _caches(header, schemes))


def cache_bytes(header: ProfileHeader, schemes: Mapping[str, Scheme], context: int) -> int:
    """Bytes of K and V with room for ``context`` tokens, all layers; none without a context."""
    return sum(scheme.bytes_at(*shape, context) for scheme, shape in _caches(header, schemes))


def _caches(header: ProfileHeader, schemes: Mapping[str, Scheme]) -> Iterator[tuple[CacheScheme, tuple[int, int]]]:
    """Schemes of caches, and their sites' shapes [heads, elements]."""
    for site in header.sites:
        scheme = schemes[site.name]
        if isinstance(scheme, CacheScheme):
            yield scheme, site.shape


def run_bytes(rows: int, inputs: int, scheme: LinearScheme, lanes: int) -> int:
    """Bytes of the tensors of a run of ``rows`` rows."""
    return packed_layout(rows, inputs, scheme.weight, lanes).storage_bytes


def _tensors(
    header: ProfileHeader, schemes: Mapping[str, Scheme], context: int | None
) -> Iterator[tuple[str, Announced]]:
    sites = {site.name: site for site in header.sites}
    for entry in header.storage:
        if isinstance(entry, StoredTensor):
            if entry.cache and not _is_mapped(schemes[entry.cache]):
                continue
            rows = (
                entry.shape[0] if context is None or not entry.positions else -(-context // CACHE_BLOCK) * CACHE_BLOCK
            )
            shape = (rows, *entry.shape[1:]) if entry.positions else entry.shape
            yield entry.name, Announced(np.dtype(entry.dtype), shape)
        else:
            yield from _matrix(entry, sites, schemes, header.lanes)


def _is_mapped(scheme: Scheme) -> bool:
    return isinstance(scheme, CacheScheme) and scheme.mapped


def _matrix(
    entry: StoredMatrix, sites: Mapping[str, Site], schemes: Mapping[str, Scheme], lanes: int
) -> Iterator[tuple[str, Announced]]:
    members = []
    for name in entry.sites:
        scheme = schemes[name]
        assert isinstance(scheme, (LinearScheme, MixedScheme)), name
        members.append((scheme, sites[name].shape[0]))
    inputs = sites[entry.sites[0]].shape[1]
    runs = joined_runs(members) if len(members) > 1 else runs_of(*members[0])
    for first, run in zip(first_rows(runs), runs, strict=True):
        prefix = f"{entry.name}.{first}" if len(runs) > 1 else entry.name
        for tensor in packed_layout(run.rows, inputs, run.scheme.weight, lanes).tensors:
            yield f"{prefix}.{tensor.name}", Announced(np.dtype(tensor.dtype), tensor.shape)


_PACKED = ("codes", "scales", "zeros", "codebook", "weights")


def storage_of(program: Program) -> tuple[StoredTensor | StoredMatrix, ...]:
    """The tensors of a lowered program without runs and with mapped caches, in the order of the artifact's file."""
    site_of = {site.weight: site.name for site in program.sites if site.weight}
    found: dict[str, StoredTensor | StoredMatrix] = {}
    for name, parameter in program.parameters.items():
        matrix, _, tensor = name.rpartition(".")
        parts = [matrix] if matrix in site_of else matrix.split("+")
        if tensor in _PACKED and all(part in site_of for part in parts):
            found.setdefault(matrix, StoredMatrix(matrix, tuple(site_of[part] for part in parts)))
        else:
            positions = name in program.rotary_tables and parameter.shape[0] == program.capacity
            found[name] = StoredTensor(name, parameter.dtype, parameter.shape, positions, mapped_cache(name))
    return tuple(found.values())
