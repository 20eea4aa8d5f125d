"""A plan as a picture or as a page: PNG, SVG, or HTML that needs nothing but itself."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.drawing import inline_svg, rendered, write_whole
from bitwright.errors import UsageError
from bitwright.plan import Plan
from bitwright.plans.bits import bits_map
from bitwright.plans.costs import Costs
from bitwright.plans.diff import total
from bitwright.plans.explain import explain
from bitwright.plans.figures import front_figure, heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("png", "svg", "html")


def draw(plan: Plan, output: Path, costs: Costs | None = None, *, name: str = "plan") -> list[Path]:
    """Write the pictures of a plan.

    Args:
        output: with the ending .png, .svg or .html. A picture of the front goes beside a PNG or SVG of the bits, as
            ``NAME-front.png``; a page holds everything.
        costs: from a profile of the model; None: bits come from the schemes' names and there is no front.
        name: of the plan, for titles.

    Returns:
        the files written.

    Raises:
        UsageError: another ending. InputError: a file cannot be written. UnsupportedError: matplotlib is missing.
    """
    kind = output.suffix[1:].lower()
    if kind not in KINDS:
        raise UsageError(
            f"'{output.name}' is no name of a picture", where="-o", limit=", ".join(f".{k}" for k in KINDS)
        )
    pictures = _pictures(plan, costs, name)
    if kind == "html":
        write_whole(output, _page(plan, costs, name, pictures).encode())
        return [output]
    written = []
    for label, figure in pictures.items():
        path = output if label == "bits" else output.with_name(f"{output.stem}-{label}{output.suffix}")
        write_whole(path, rendered(figure, kind))
        written.append(path)
    return written


def _pictures(plan: Plan, costs: Costs | None, name: str) -> dict[str, Figure]:
    if costs is None:
        return {"bits": heat_map(bits_map(plan), name)}
    sites = {site.name: site for site in costs.profile.header.sites}
    uses = total(costs.plan(plan).values())
    menus = {site: costs.menu(site) for site in sites}
    return {"bits": heat_map(bits_map(plan, sites), name), "front": front_figure(menus, uses)}


def _page(plan: Plan, costs: Costs | None, name: str, pictures: dict[str, Figure]) -> str:
    from jinja2 import Environment

    template = files("bitwright").joinpath("data", "plan.html.j2").read_text(encoding="utf-8")
    page: str = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            name=name,
            notes=dict(plan.notes),
            pictures={label: inline_svg(figure) for label, figure in pictures.items()},
            explanation=None if costs is None else explain(plan, costs),
            schemes={site: scheme.name for site, scheme in plan.schemes.items()},
        )
    )
    return page
