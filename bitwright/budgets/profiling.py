"""What ``bitwright profile`` does: quantize every matrix in every scheme, and score what each error costs the model.

A site's scores are kept as soon as they are there, and its codes too, for whoever measures or compiles a plan later.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.scoring import Scoring
from bitwright.cachemaps import CacheMaps
from bitwright.compiling.folding import foldable
from bitwright.compiling.key_calibration import cache_maps
from bitwright.compiling.rotation import rotated
from bitwright.errors import UnsupportedError
from bitwright.options import DEFAULT_CONTEXT, Options
from bitwright.plan import Plan
from bitwright.runs import Scheme
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.sensitivity import Profile, ProfileHeader, StoredMatrix, StoredTensor
from bitwright.target import Target

if TYPE_CHECKING:
    from bitwright.codegen.isa import Isa
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids
    from bitwright.program import Program

Floats = npt.NDArray[np.float32]
Tell = Callable[[str], None]


def profile_model(
    model: str | Path | ImportedModel,
    folder: Path,
    options: ProfileOptions | None = None,
    *,
    tell: Tell | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Profile a decoder into ``folder``, or finish a profile that was begun there.

    Args:
        tell: called with what is being done.
        progress: called with (sites done, sites).

    Raises:
        InputError, UnsupportedError, UsageError: as ``compile_model``; an encoder cannot be profiled.
    """
    from bitwright import pipeline
    from bitwright.compiling.calibration import calibrated, calibration_windows
    from bitwright.compiling.transforming import transformed
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.moments import apart, calibration_digest
    from bitwright.passes.sensitivity.find import metric_named

    options, tell = options or ProfileOptions(), tell or (lambda _: None)
    metric, target = metric_named(options.metric), Target.parse(options.target)
    imported = pipeline.load_model(model, tell, None)
    if options.rotate:
        rotated(imported, options.rotate)  # what cannot be is said now rather than after calibration
    if imported.kind != "decoder":
        raise UnsupportedError("an encoder has no predictions to score", where=imported.name, limit="decoders only")
    program = pipeline.sites_of(imported, Options(target=options.target), tell)
    interpreter = Interpreter(imported.graph)
    quantizing = Options(
        quantizer=options.quantizer,
        calibration=options.calibration if options.quantizer != "rtn" else None,
        calibration_cache=folder / "calibration" if options.quantizer != "rtn" else None,
        equalise=options.equalise,
        reorder=options.reorder,
        weigh_tokens=options.weigh_tokens,
    )
    with ExitStack() as stack:
        windows = calibration_windows(imported, interpreter, options.calibration, folder / "calibration", tell)
        moments = stack.enter_context(calibrated(imported, quantizing, tell))
        ready = transformed(
            imported, moments, equalise=options.equalise, reorder=options.reorder, rotate=options.rotate
        )
        imported, moments = ready.model, ready.moments
        if ready.events:
            program = pipeline.sites_of(imported, Options(target=options.target), tell)
            interpreter = Interpreter(imported.graph)
        chosen = windows[: max(1, options.tokens // windows.shape[1])]
        header = ProfileHeader(
            model=str(model) if isinstance(model, (str, Path)) else imported.name,
            name=imported.name,
            digest=imported.digest,
            target=target.fingerprint,
            target_name=options.target,
            isa=_isa(target).name,
            lanes=_isa(target).lanes,
            cores=target.cores,
            sites=program.sites,
            storage=_storage(program, imported, target),
            weights=tuple(scheme.name for scheme in options.weights),
            table_weights=tuple(scheme.name for scheme in options.table_weights),
            caches=tuple(scheme.name for scheme in options.caches),
            metric=metric.name,
            unit=metric.unit,
            quantizer=options.quantizer,
            moments="" if moments is None else moments.digest,
            calibration=calibration_digest(imported.digest, chosen),
            tokens=int(chosen.size),
            seed=options.seed,
            rotated=options.rotate,
            equalised=ready.digests.get("equalisation", ""),
            reordered=ready.digests.get("order", ""),
            weighed=options.weigh_tokens,
        )
        profile = Profile.begin(folder, header)
        np.save(folder / "windows.npy", windows)
        maps = _maps(imported, program, interpreter, windows, options, folder, tell)
        free = len(apart(windows))
        scoring = Scoring(
            imported, program, interpreter, chosen, free, moments, options, metric, profile, maps, tell, progress
        )
        scoring.all_sites(stack.enter_context(ThreadPoolExecutor(options.jobs)))
    return Profile.read(folder)


def _isa(target: Target) -> Isa:
    from bitwright.codegen.isa import select_isa

    return select_isa(target.features)


def _storage(program: Program, imported: ImportedModel, target: Target) -> tuple[StoredTensor | StoredMatrix, ...]:
    """What the artifact stores, found by lowering the model with packed weights and mapped caches where legal."""
    from bitwright import pipeline
    from bitwright.budgets.storage import storage_of
    from bitwright.passes.legality import reason

    weights = LinearScheme.parse("u8g32a8"), LinearScheme.parse("f16")
    caches = {f"{letter}_cache": [CacheScheme.parse(letter + name) for name in ("8rowm", "16")] for letter in "kv"}
    schemes: dict[str, Scheme] = {}
    for site in program.sites:
        packed, single = weights if site.weight else caches[site.kind]
        schemes[site.name] = packed if reason(site, packed, _isa(target)) is None else single
    plan = Plan(schemes, imported.digest, target.fingerprint)
    maps = CacheMaps.announced(program.sites, foldable(imported))
    for phase in pipeline.transformations(Options(target=target.name), plan, target, cache_maps=maps):
        program = phase(program)
    return storage_of(program)


def _maps(
    imported: ImportedModel,
    program: Program,
    interpreter: Interpreter,
    windows: Ids,
    options: ProfileOptions,
    folder: Path,
    tell: Tell,
) -> CacheMaps:
    """Maps of all caches if some scheme asks for them, kept in the profile's folder."""
    letters = {scheme.tensor for scheme in options.caches if scheme.mapped}
    sites = [site.name for site in program.sites if not site.weight and site.kind[0] in letters]
    maps = CacheMaps.read(folder)
    if any(maps.of(site) is None for site in sites):
        maps = cache_maps(imported, interpreter, windows, sites, DEFAULT_CONTEXT, options.recent, tell)
        maps.write(folder)
    return maps
