"""What ``bitwright inspect`` shows: the sites of a model, the schemes each can have, bytes at each width."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitwright.options import Options
from bitwright.scheme import LinearScheme
from bitwright.site import Site
from bitwright.target import Target

_PACKED = {letter: re.compile(letter + r"(?P<bits>\d+)(?:g(?P<group>\d+)|row)") for letter in "uckv"}
# Sorts a whole row behind every group size.
MANY = 1 << 30


@dataclass(frozen=True)
class SiteReport:
    """One site; ``schemes``: names of the (symmetric) schemes that are legal for it."""

    site: Site
    schemes: tuple[str, ...]

    @property
    def notes(self) -> str:
        """Structure worth knowing: shared inputs, ties, biases."""
        found = [f"with {self.site.group}"] if self.site.group and self.site.group != self.site.name else []
        found += ["tied to lm_head"] if self.site.tied else []
        found += ["bias"] if self.site.bias else []
        return ", ".join(found)

    @property
    def summary(self) -> str:
        """The schemes in short: widths, then groups, then floats; ``u2/3/4 in g32 g64 row, c3/4 in g32, f16, f32``."""
        kinds = {letter: [name for name in self.schemes if _PACKED[letter].fullmatch(name)] for letter in _PACKED}
        others = [name for name in self.schemes if not any(name in names for names in kinds.values())]
        packed = [text for letter, names in kinds.items() if names for text in _in_short(letter, names)]
        return ", ".join([*packed, *others])


def _in_short(letter: str, names: list[str]) -> list[str]:
    """Widths and groups of one kind of scheme, if every width has every group; else the names."""
    found = [match for name in names if (match := _PACKED[letter].fullmatch(name)) is not None]
    groups = sorted({int(match["group"] or 0) for match in found}, key=lambda group: group or MANY)
    widths = sorted({int(match["bits"]) for match in found})
    if len(found) != len(groups) * len(widths):
        return names
    return [f"{letter}{'/'.join(map(str, widths))} in {' '.join(f'g{g}' if g else 'row' for g in groups)}"]


@dataclass(frozen=True)
class Inspection:
    """``totals``: scheme name to bytes of all matrices in it (tile padding included); only schemes legal everywhere."""

    name: str
    digest: str
    isa: str
    parameters: int
    sites: tuple[SiteReport, ...]
    totals: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        sites = [{**asdict(s.site), "schemes": list(s.schemes)} for s in self.sites]
        return {
            "name": self.name,
            "digest": self.digest,
            "isa": self.isa,
            "parameters": self.parameters,
            "sites": sites,
            "bytes": self.totals,
        }


def inspect_model(
    model: str | Path,
    *,
    target: str = "native",
    context: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Inspection:
    """Import a model and list its sites.

    Raises:
        InputError, UnsupportedError, UsageError: as ``compile_model``.
    """
    from bitwright import pipeline
    from bitwright.codegen.isa import select_isa
    from bitwright.passes.legality import legal_caches, legal_weights

    tell = progress or (lambda _: None)
    machine = Target.parse(target)
    isa = select_isa(machine.features)
    imported = pipeline.load_model(model, tell, context)
    program = pipeline.sites_of(imported, Options(context=context), tell)
    reports = []
    for site in program.sites:
        legal = legal_weights(site, isa) if site.weight else legal_caches(site)
        reports.append(SiteReport(site, tuple(scheme.name for scheme in legal)))
    matrices = [report.site for report in reports if report.site.weight]
    return Inspection(
        imported.name,
        imported.digest,
        isa.name,
        sum(site.parameters for site in matrices),
        tuple(reports),
        _totals(matrices, isa),
    )


def _totals(matrices: list[Site], isa: Any) -> dict[str, int]:
    from bitwright.codegen.layout import packed_layout
    from bitwright.passes.legality import reason, weight_schemes

    totals = {}
    for weight in weight_schemes():
        if all(reason(site, LinearScheme(weight), isa) is None for site in matrices):
            totals[weight.name] = sum(packed_layout(*site.shape, weight, isa.lanes).storage_bytes for site in matrices)
    return totals
