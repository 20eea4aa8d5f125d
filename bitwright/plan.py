"""Plan: which scheme each site gets, and what the choice was computed from. A file people read, diff and edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitwright.errors import BitwrightError, InputError, UsageError
from bitwright.runs import MixedScheme, Scheme, parse_weights
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.site import Site

PLAN_VERSION = 1

ORDER = "order"
"""The note with the digest of the order of hidden units and token rows that a plan's runs of rows are for; empty: as
they were."""


def parse_site_scheme(text: str) -> Scheme:
    """A cache scheme when it reads as one (``k16``), else the scheme of a matrix or of the runs of its rows."""
    return CacheScheme.parse(text) if text[:1] in ("k", "v") else parse_weights(text)


@dataclass(frozen=True)
class Plan:
    """Schemes by site name, with provenance.

    Attributes:
        schemes: site name to scheme, in the model's order.
        model: sha256 of the canonical model the sites were found in.
        target: fingerprint of the target it was made for.
        notes: other provenance (budgets, predicted bytes, digests), JSON values.
    """

    schemes: Mapping[str, Scheme]
    model: str
    target: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schemes", MappingProxyType(dict(self.schemes)))
        object.__setattr__(self, "notes", MappingProxyType(dict(self.notes)))

    def to_json(self) -> str:
        """Byte-stable JSON: sites in model order, one per line."""
        document = {
            "plan_version": PLAN_VERSION,
            "model": self.model,
            "target": self.target,
            "notes": dict(sorted(self.notes.items())),
            "schemes": {site: scheme.name for site, scheme in self.schemes.items()},
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "plan") -> Plan:
        """Read a plan.

        Raises:
            InputError: the text is not JSON, misses a key, or holds a scheme that does not parse.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                "the plan is not valid JSON", where=f"{where}: {error}", remedy="fix the syntax"
            ) from error
        if not isinstance(document, dict) or document.get("plan_version") != PLAN_VERSION:
            raise InputError(
                "the plan has an unknown version",
                where=where,
                limit=f"plan_version {PLAN_VERSION}",
                remedy="write it again with this version of bitwright",
            )
        schemes = document.get("schemes")
        if not isinstance(schemes, dict) or not all(isinstance(value, str) for value in schemes.values()):
            raise InputError("the plan has no map of schemes", where=where, limit='"schemes": {site: scheme name}')
        parsed: dict[str, Scheme] = {}
        for site, name in schemes.items():
            try:
                parsed[site] = parse_site_scheme(name)
            except BitwrightError as error:
                raise InputError(
                    error.what, where=f"{where}: site {site}", limit=error.limit, remedy=error.remedy
                ) from error
        notes = document.get("notes", {})
        if not isinstance(notes, dict):
            raise InputError("the plan's notes are not a map", where=where)
        return cls(parsed, str(document.get("model", "")), str(document.get("target", "")), notes)

    @classmethod
    def read(cls, path: Path) -> Plan:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(
                "the plan cannot be read", where=str(path), limit=reason, remedy="copy plan.json from an artifact"
            ) from error
        return cls.from_json(text, where=str(path))

    def write(self, path: Path) -> None:
        """Write the plan; a failure leaves an older file as it was.

        Raises:
            UsageError: the file cannot be written.
        """
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(self.to_json(), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise UsageError(
                f"the plan cannot be written: {error.strerror}", where=str(path), remedy="choose another path"
            ) from error

    def check_sites(self, sites: tuple[Site, ...], *, where: str = "plan") -> None:
        """Refuse a plan that misses a site, names one the model does not have, or cuts one into runs that do not fit.

        Raises:
            InputError: naming the first such sites.
        """
        known = {site.name: site for site in sites}
        missing = [name for name in known if name not in self.schemes]
        unknown = [name for name in self.schemes if name not in known]
        if missing or unknown:
            what = f"the plan misses {len(missing)} sites and names {len(unknown)} that the model does not have"
            raise InputError(
                what, where=f"{where}: {', '.join((missing + unknown)[:5])}", remedy="make a plan for this model"
            )
        for name, scheme in self.schemes.items():
            kind, shape = known[name].kind, known[name].shape
            fits = (
                isinstance(scheme, (LinearScheme, MixedScheme))
                if kind in ("linear", "table")
                else (isinstance(scheme, CacheScheme) and kind.startswith(scheme.tensor))
            )
            if not fits:
                raise InputError(f"scheme {scheme} does not fit a site of kind {kind}", where=f"{where}: site {name}")
            if isinstance(scheme, MixedScheme) and (reason := scheme.why_not(shape[0])) is not None:
                raise InputError(
                    f"scheme {scheme} does not fit a matrix of {shape[0]} x {shape[1]}",
                    where=f"{where}: site {name}",
                    limit=reason,
                    remedy="change the rows of the runs",
                )


def check_order(plan: Plan, order: str) -> None:
    """Refuse to cut matrices into a plan's runs where their rows stand in another order than the plan is for.

    Args:
        order: digest of the order of hidden units and token rows; empty if they were left where they stood.

    Raises:
        UsageError: the plan has runs of rows, and notes another order.
    """
    cut = any(isinstance(scheme, MixedScheme) for scheme in plan.schemes.values())
    if cut and plan.notes.get(ORDER, order) != order:
        text = " on the text it was profiled with" if order else ""
        raise UsageError(
            "the plan's runs of rows are for hidden units and tokens in another order",
            where="--plan",
            limit="the order of the profile that the plan was made from",
            remedy=f"leave --reorder out, or calibrate{text}" if order else "add --reorder --weigh-tokens",
        )


def uniform_plan(
    sites: tuple[Site, ...],
    scheme: LinearScheme,
    *,
    table: LinearScheme | None,
    cache_bits: int,
    keys: CacheScheme | None = None,
    values: CacheScheme | None = None,
    model: str,
    target: str,
) -> Plan:
    """The same scheme everywhere.

    Args:
        scheme: of linear layers.
        table: of embedding and lm_head; None: ``scheme``.
        cache_bits: 16 or 32, for the caches that ``keys`` and ``values`` leave open.
        keys, values: of the K and of the V caches.
    """
    schemes: dict[str, Scheme] = {}
    caches = {"k_cache": keys or CacheScheme("k", cache_bits), "v_cache": values or CacheScheme("v", cache_bits)}
    for site in sites:
        weight = (table or scheme) if site.kind == "table" else scheme
        schemes[site.name] = caches.get(site.kind, weight)
    return Plan(schemes, model, target, {"strategy": "uniform"})
