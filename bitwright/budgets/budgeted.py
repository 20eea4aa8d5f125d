"""``compile --max-bytes ...`` in one go: profile the model, choose a plan within the budgets, and how to compile it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.allocation import Budgets
from bitwright.options import Options
from bitwright.sensitivity import Profile

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel

Tell = Callable[[str], None]


def budgeted(
    model: ImportedModel, folder: Path, budgets: Budgets, options: Options, rounds: int, jobs: int, tell: Tell
) -> Options:
    """``options`` with the best plan within ``budgets`` instead of schemes, and the codes that its profile kept.

    Args:
        folder: of the profile; one that is there is used, or finished.
        options: their quantizer, calibration and target are what is profiled with.
        rounds: of correction, see ``bitwright.budgets.correction``.
        jobs: see ``ProfileOptions``.

    Raises:
        InfeasibleError: no plan meets the budgets.
        InputError: the folder holds a profile of something else.
    """
    from bitwright.budgets.allocating import Settings
    from bitwright.budgets.correction import Measurer, allocate_corrected
    from bitwright.budgets.profile_options import ProfileOptions
    from bitwright.budgets.profiling import profile_model

    codes = folder / "codes"
    wanted = ProfileOptions(
        target=options.target,
        quantizer=options.quantizer,
        calibration=options.calibration,
        rotate=options.rotate,
        equalise=options.equalise,
        reorder=options.reorder,
        weigh_tokens=options.weigh_tokens,
        jobs=jobs,
        codes=codes,
    )
    if (folder / "profile.json").exists():
        # What is there decides: a profile may have been made with other candidates.
        header = Profile.header_of(folder)
        schemes = (*header.weights, *header.caches)
        quantizer: Any = header.quantizer
        wanted = replace(
            wanted,
            schemes=schemes,
            table_schemes=header.table_weights,
            metric=header.metric,
            tokens=header.tokens,
            seed=header.seed,
            quantizer=quantizer,
        )
        options = replace(options, quantizer=quantizer)
    state = {"done": "", "at": ""}

    def show(key: str, text: str) -> None:
        state[key] = text
        tell(f"profile: {state['done']}{state['at']}")

    profile = profile_model(
        model,
        folder,
        wanted,
        tell=lambda text: show("at", text),
        progress=lambda done, total: show("done", f"{done}/{total} sites, "),
    )
    measurer = Measurer(profile, tell, model)
    found = allocate_corrected(profile, budgets, Settings(), rounds, tell, measurer)
    cache = None if options.quantizer == "rtn" else folder / "calibration"
    return replace(options, plan=found.plan, codes=codes, calibration_cache=cache)
