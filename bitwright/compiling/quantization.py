"""How the weights of a compilation become codes: by a quantizer, from what a profile kept, or by training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.compiling.distillation import distilled
from bitwright.compiling.reconstruction import rebuilt
from bitwright.errors import UsageError
from bitwright.rotated_parts import Part
from bitwright.sensitivity import Profile

if TYPE_CHECKING:
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Moments
    from bitwright.options import Options
    from bitwright.passes.quantizers.matrix import Quantizer
    from bitwright.plan import Plan
    from bitwright.program import Parameter, Program

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Quantization:
    """What turns matrices into codes.

    Attributes:
        quantizer_of: by parameter.
        digests: of what it depends on, for the manifest.
        description: a sentence for each stage, for the report.
    """

    quantizer_of: Callable[[Parameter], Quantizer]
    digests: Mapping[str, str]
    description: str


def quantization(
    model: ImportedModel,
    program: Program,
    plan: Plan,
    options: Options,
    moments: Moments | None,
    tell: Tell,
    changed: Collection[str] = (),
) -> Quantization:
    """What ``options`` ask for; training happens here and now, everything else when weights are written.

    Args:
        moments: what the quantizer calibrated on; they must stay readable until the weights are written.
        tell: called with the name of each matrix as it is quantized, and with each training step.
        changed: weights that a profile's codes are not for.
    """
    from bitwright.passes.quantizers.kept import KeptCodes, KeptQuantizers
    from bitwright.passes.quantizers.ready import ReadyMatrices
    from bitwright.passes.quantizers.sites import SiteQuantizers

    quantizer_of: Callable[[Parameter], Quantizer] = SiteQuantizers(
        options.quantizer, moments, lambda matrix: tell(f"quantize {matrix}")
    )
    if options.codes is not None:
        rows = {
            site.weight: (site.name, site.shape[0])
            for site in program.sites
            if site.weight and site.weight not in changed
        }
        quantizer_of = KeptQuantizers(KeptCodes(options.codes), rows, quantizer_of)
    digests = {} if moments is None else {"calibration": moments.digest}
    sentences = [f"Quantized by {options.quantizer}."]
    if options.reconstruct:
        blocks = rebuilt(model, program, plan, options, quantizer_of, tell)
        quantizer_of = ReadyMatrices(blocks.matrices, quantizer_of)
        digests["reconstruction"] = blocks.digest
        sentences.append(
            f"{blocks.trained} of {blocks.blocks} blocks reconstructed in {options.reconstruct} steps each"
            f"{_limit(options)}: mean error of a block on held-out text {blocks.before:.4f} before, "
            f"{blocks.after:.4f} after."
        )
    if options.distill:
        trained = distilled(model, program, plan, options, quantizer_of, tell)
        quantizer_of = ReadyMatrices(trained.matrices, quantizer_of)
        digests["distillation"] = trained.digest
        sentences.append(
            f"Then trained for {options.distill} steps{_limit(options)}, and {trained.share:.0%} of what they changed "
            f"is kept: divergence of held-out text {trained.before:.4f} before, {trained.after:.4f} after."
        )
    return Quantization(quantizer_of, digests, " ".join(sentences))


def _limit(options: Options) -> str:
    return "" if options.stage_minutes is None else f" or {options.stage_minutes:g} minutes in all"


def check_kept(codes: Path, digests: Mapping[str, str], rotate: tuple[Part, ...]) -> None:
    """Refuse a profile's codes if they are not those of the weights that are compiled.

    Args:
        codes: the folder in the profile's.
        digests: of the factors that were moved between layers and of the order of units and rows, as far as they were.
        rotate: what was rotated.

    Raises:
        UsageError: the weights of the profile and of the compilation are not equalised, reordered and rotated alike.
    """
    header = Profile.header_of(codes.parent)
    compared = (
        ("--equalise", header.equalised, digests.get("equalisation", "")),
        ("--reorder", header.reordered, digests.get("order", "")),
        ("--rotate", ",".join(header.rotated), ",".join(rotate)),
    )
    for option, profiled, compiled in compared:
        if profiled == compiled:
            continue
        wanted = f"{option} {profiled}" if option == "--rotate" else option
        raise UsageError(
            "the profile's codes are not those of the weights that are compiled",
            where=f"{option}, profile {codes.parent}",
            limit="the same for both, found on the same text",
            remedy=f"use {wanted}, or make another profile" if profiled else f"leave {option} out",
        )
