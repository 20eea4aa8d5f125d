"""A small profile of whatever was done to a model first."""

from __future__ import annotations

from pathlib import Path

from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.frontend.model import ImportedModel
from bitwright.sensitivity import Profile

SCHEMES = ("u3g32", "u6g32", "k16", "v16")


def profiled(model: ImportedModel, folder: Path, text: Path, *, equalise: bool, reorder: bool = False) -> Profile:
    """With codes kept; tokens are weighed where anything is done."""
    options = ProfileOptions(
        schemes=SCHEMES,
        quantizer="gptq",
        calibration=text,
        equalise=equalise,
        reorder=reorder,
        weigh_tokens=equalise,
        tokens=480,
        codes=folder / "codes",
    )
    return profile_model(model, folder, options)
