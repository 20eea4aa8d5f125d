"""``bitwright profile``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bitwright.cli import console
from bitwright.cli.activation_table import print_activations
from bitwright.cli.options import JsonOption, MetricOption, ModelArgument, RotateOption, TargetOption


def command(
    model: ModelArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make, or to go on with if interrupted.")
    ],
    target: TargetOption = "native",
    schemes: Annotated[
        str | None,
        typer.Option(
            help="Weight and cache schemes to score: c3g32,u4g32,k4g32,v4g32. Default: about half a bit apart."
        ),
    ] = None,
    table_schemes: Annotated[
        str | None,
        typer.Option(help="More weight schemes for token tables and lm_head. Default: c2row,c3row without --schemes."),
    ] = None,
    metric: MetricOption = "fisher",
    quantizer: Annotated[
        str, typer.Option("--quantizer", help="rtn (nearest), clip, gptq or auto, from fastest to best.")
    ] = "auto",
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="Text to calibrate on. Default: the model samples one."),
    ] = None,
    weigh_tokens: Annotated[
        bool, typer.Option("--weigh-tokens", help="As of compile, which then needs it too.")
    ] = False,
    rotate: RotateOption = None,
    equalise: Annotated[bool, typer.Option("--equalise", help="As of compile, which then needs it too.")] = False,
    reorder: Annotated[bool, typer.Option("--reorder", help="As of compile, which then needs it too.")] = False,
    tokens: Annotated[int, typer.Option("--tokens", help="Most tokens to take gradients at.")] = 4096,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Schemes at work at a time; the result is the same.")] = 1,
    check: Annotated[
        int, typer.Option("--check", help="Scores to compare with the measured divergence of that site alone.")
    ] = 0,
    keep_codes: Annotated[
        bool, typer.Option(help="Keep quantized matrices: to measure and correct plans quickly.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Score what every scheme of every site costs in quality; `bitwright allocate` chooses from the scores.

    Every site is kept as soon as it is scored: a run may be interrupted, and goes on when it is repeated. At the end
    the sites are shown that lose most from int8 activations.
    """
    from bitwright.budgets.cache_report import cache_costs
    from bitwright.budgets.correction import Measurer
    from bitwright.budgets.cross_check import cross_check
    from bitwright.budgets.profile_options import ProfileOptions
    from bitwright.budgets.profiling import profile_model
    from bitwright.plans.activations import activation_losses
    from bitwright.rotated_parts import parse_parts

    options = ProfileOptions(
        target=target,
        schemes=_names(schemes),
        table_schemes=_names(table_schemes),
        metric=metric,
        quantizer=quantizer,  # type: ignore[arg-type]  # __post_init__ checks the value
        calibration=calibration,
        rotate=() if rotate is None else parse_parts(rotate),
        equalise=equalise,
        reorder=reorder,
        weigh_tokens=weigh_tokens,
        tokens=tokens,
        jobs=jobs,
        codes=output / "codes" if keep_codes else None,
    )
    with console.phases("profiling") as tell:
        state = {"done": "", "at": ""}

        def show(**changed: str) -> None:
            state.update(changed)
            tell(f"{state['done']}{state['at']}")

        profile = profile_model(
            model,
            output,
            options,
            tell=lambda text: show(at=text),
            progress=lambda done, total: show(done=f"{done}/{total} sites, "),
        )
        found = None
        if check:
            measurer = Measurer(profile, tell)
            found = cross_check(profile, check, measurer, lambda done, total: tell(f"check {done} of {total}"))
            found.write(output / "check.json")
    header = profile.header
    document: dict[str, Any] = {
        "profile": str(profile.folder),
        "sites": len(header.sites),
        "weights": list(header.weights),
        "table_weights": list(header.table_weights),
        "caches": list(header.caches),
        "metric": header.metric,
        "tokens": header.tokens,
        "digest": profile.digest,
    }
    costs = cache_costs(profile)
    if found is not None:
        document |= {"rank_correlation": found.rank_correlation, "measured_over_predicted": found.ratio}
    inputs = activation_losses(profile)
    if json:
        losses = {"activations": [loss.to_json() for loss in inputs]}
        console.print_json({**document, **losses, "cache_losses": {cost.scheme: cost.to_json() for cost in costs}})
        return
    texts = {name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in document.items()}
    console.print_table(
        ("profile", "value"), [[name.replace("_", " "), text or "none"] for name, text in texts.items()]
    )
    if inputs:
        print()
        print_activations(inputs)
    if costs:
        print()
        rows = [[c.scheme, f"{c.bits:.3f}", f"{c.total:.5f}", f"{c.worst} {c.losses[c.worst]:.5f}"] for c in costs]
        console.print_table(("caches", "bits", f"loss, {header.unit}", "most in"), rows)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
