"""What ``bitwright profile`` does: quantize every matrix in every scheme, and score what each error costs the model.

Sites are taken in the graph's order, as many at a time as their inputs and gradients fit the memory that is allowed;
for each such batch the float model runs over the calibration windows once, forward and backward. A site's scores are
kept as soon as they are there, and its codes too, for whoever measures or compiles a plan later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitwright.cachemaps import CacheMaps
from bitwright.compiling.key_calibration import cache_maps
from bitwright.compiling.rotation import rotated
from bitwright.errors import UnsupportedError, UsageError
from bitwright.options import DEFAULT_CONTEXT, Options, QuantizerName
from bitwright.plan import Plan
from bitwright.rotated_parts import Part
from bitwright.runs import Scheme
from bitwright.scheme import BITS, CacheScheme, LinearScheme, WeightScheme
from bitwright.sensitivity import Profile, ProfileHeader, SiteScores, StoredMatrix, StoredTensor
from bitwright.site import Site
from bitwright.target import Target

if TYPE_CHECKING:
    from bitwright.codegen.isa import Isa
    from bitwright.frontend.calibrate.gradients import Observed
    from bitwright.frontend.calibrate.points import Points
    from bitwright.frontend.interpreter import Interpreter
    from bitwright.frontend.model import ImportedModel
    from bitwright.moments import Ids, Moments
    from bitwright.passes.quantizers.matrix import QuantizedMatrix
    from bitwright.passes.sensitivity.metric import Evidence, Metric
    from bitwright.program import Program

Floats = npt.NDArray[np.float32]
Tell = Callable[[str], None]

DEFAULT_WEIGHTS = ("c2g32", "c3g64", "c3g32", "u4g32", "c4g64", "c4g32", "u5g64", "u6g64", "u8g64")
"""About half a bit apart. At equal bytes a codebook is better than uniform codes up to four bits."""

DEFAULT_TABLE_WEIGHTS = ("c2row", "c3row")
"""Of the token table besides: where tokens are rare, even a scale per group is too dear."""

DEFAULT_CACHES = (
    *(f"{tensor}{bits}{how}" for tensor in "kv" for how in ("g32", "rowm") for bits in BITS),
    *(f"k{widths}rowm" for widths in ("3-2", "4-2", "4-3", "5-3", "5-4", "6-4")),
)
"""As they are and mapped: maps save a bit or more, and cost a multiplication of every head at run time."""

MEMORY_BYTES = 1 << 30
"""Inputs and gradients in memory at a time."""


@dataclass(frozen=True)
class ProfileOptions:
    """How to profile.

    Attributes:
        target: a name that ``Target.parse`` knows.
        schemes: names of weight and cache schemes; None: DEFAULT_WEIGHTS and DEFAULT_CACHES.
        table_schemes: names of further weight schemes, for token tables and what makes the logits; None:
            DEFAULT_TABLE_WEIGHTS if ``schemes`` is None too, else none.
        metric: name of a sensitivity metric.
        quantizer: how weights become codes.
        calibration: a text file; None: text that the model samples itself.
        rotate, equalise, reorder, weigh_tokens: as of a compilation.
        tokens: most tokens that gradients are taken at.
        seed: of sampled labels.
        jobs: schemes that are quantized and scored at a time; does not change the result.
        memory: bytes of inputs and gradients in memory.
        codes: folder that keeps codes for measuring and compiling; None: they are thrown away.
    """

    target: str = "native"
    schemes: tuple[str, ...] | None = None
    table_schemes: tuple[str, ...] | None = None
    metric: str = "fisher"
    quantizer: QuantizerName = "auto"
    calibration: Path | None = None
    rotate: tuple[Part, ...] = ()
    equalise: bool = False
    reorder: bool = False
    weigh_tokens: bool = False
    tokens: int = 4096
    seed: int = 0
    jobs: int = 1
    memory: int = MEMORY_BYTES
    codes: Path | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.jobs < 1:
            raise UsageError(f"{self.tokens} tokens, {self.jobs} jobs", limit="at least 1 of each")
        _ = self.weights, self.table_weights, self.caches

    @property
    def weights(self) -> tuple[WeightScheme, ...]:
        """Candidates for matrices."""
        names = DEFAULT_WEIGHTS if self.schemes is None else [s for s in self.schemes if s[:1] not in ("k", "v")]
        return tuple(WeightScheme.parse(name) for name in names)

    @property
    def table_weights(self) -> tuple[WeightScheme, ...]:
        """Candidates for matrices with a row per token, besides those of all."""
        names = self.table_schemes
        if names is None:
            names = DEFAULT_TABLE_WEIGHTS if self.schemes is None else ()
        found = tuple(WeightScheme.parse(name) for name in names)
        return tuple(scheme for scheme in dict.fromkeys(found) if scheme not in self.weights)

    @property
    def caches(self) -> tuple[CacheScheme, ...]:
        """Candidates for caches; 16 bits are always one."""
        named = DEFAULT_CACHES if self.schemes is None else [s for s in self.schemes if s[:1] in ("k", "v")]
        return tuple(CacheScheme.parse(name) for name in dict.fromkeys((*named, "k16", "v16")))


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
        run = _Run(
            imported, program, interpreter, chosen, free, moments, options, metric, profile, maps, tell, progress
        )
        run.all_sites(stack.enter_context(ThreadPoolExecutor(options.jobs)))
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
    maps = CacheMaps.announced(program.sites)
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
        maps = cache_maps(imported, interpreter, windows, sites, DEFAULT_CONTEXT, tell)
        maps.write(folder)
    return maps


@dataclass(frozen=True)
class _Run:
    """One profile at work; ``apart``: so many of the windows say nothing of the order of tokens."""

    imported: ImportedModel
    program: Program
    interpreter: Interpreter
    windows: Ids
    apart: int
    moments: Moments | None
    options: ProfileOptions
    metric: Metric
    profile: Profile
    maps: CacheMaps
    tell: Tell
    progress: Callable[[int, int], None] | None

    def all_sites(self, executor: Executor) -> None:
        from bitwright.frontend.calibrate.gradients import observe
        from bitwright.frontend.calibrate.points import Points

        points = Points.of(self.imported.graph)
        sites = self.program.sites
        done = sum(self.profile.has(site.name) for site in sites)
        self._advance(done)
        for batch in self._batches(points):
            self.tell(f"run the model for {batch[0].name} to {batch[-1].name}")
            wanted = [site for site in batch if self.options.weights or not site.weight]
            values, gradients = _watched(wanted, points)
            windows = self._read_for(batch[0], points)
            observed = observe(self.interpreter, windows, values, gradients, seed=self.options.seed)
            for site in batch:
                self.tell(f"score {site.name}")
                self.profile.put(self._scores(site, points, observed, executor))
                done += 1
                self._advance(done)

    def _advance(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.program.sites))

    def _batches(self, points: Points) -> Iterator[list[Site]]:
        """Sites without scores, in order of the network, as many as fit the memory together (at least one)."""
        batch: list[Site] = []
        used = 0
        for site in _by_layer(self.program.sites):
            if self.profile.has(site.name):
                continue
            if batch and len(self._read_for(site, points)) != len(self._read_for(batch[0], points)):
                yield batch
                batch, used = [], 0
            size = 4 * self.windows.size * (site.shape[0] * (2 if not site.weight else 1) + site.shape[1])
            size = 4 * self.windows.size * site.shape[1] if _gives_logits(site, points) else size
            size = size if self.options.weights or not site.weight else 0
            if batch and used + size > self.options.memory:
                yield batch
                batch, used = [], 0
            batch.append(site)
            used += size
        if batch:
            yield batch

    def _read_for(self, site: Site, points: Points) -> Ids:
        """The windows that score a site: rows of tokens only by those that had no part in their order."""
        if points.rank is None or not _has_row_per_token(site, points):
            return self.windows
        return self.windows[: self.apart]

    def _scores(self, site: Site, points: Points, observed: Observed, executor: Executor) -> SiteScores:
        from bitwright.passes.legality import reason
        from bitwright.passes.sensitivity.scores import LookUps, cache_scores, matrix_scores

        isa = _isa(Target.parse(self.options.target))
        if not site.weight:
            keys, values = points.caches[int(site.name.split(".")[1])]
            name = keys if site.kind == "k_cache" else values
            letter = site.kind[0]
            caches = [s for s in self.options.caches if s.tensor == letter and reason(site, s, isa) is None]
            held, felt = observed.values[name], observed.gradients[name]
            return cache_scores(site, held, felt, caches, self.maps.of(site.name), self.windows.shape[1])
        if not self.options.weights:
            return SiteScores(site.name)
        weights = np.ascontiguousarray(self.program.parameters[site.weight].load(), dtype=np.float32)
        more = self.options.table_weights if _has_row_per_token(site, points) else ()
        candidates = (*self.options.weights, *more)
        schemes = [scheme for scheme in candidates if reason(site, LinearScheme(scheme), isa) is None]
        look_ups = None
        if site.weight in points.look_ups and points.look_ups[site.weight] in observed.gradients:
            gradient = observed.gradients[points.look_ups[site.weight]]
            frequency = self._by_row(observed.frequency, points)
            look_ups = LookUps(frequency, np.mean(np.square(gradient), axis=0, dtype=np.float64))
        evidence = self._evidence(site, weights, points, observed)
        quantizer = site_quantizer(site, weights, self.moments, self.options.quantizer, self.options.codes)
        return matrix_scores(site, weights, schemes, quantizer, self.metric, evidence, look_ups, executor)

    def _by_row(self, of_tokens: npt.NDArray[np.float64], points: Points) -> npt.NDArray[np.float64]:
        """Numbers of tokens in the order of the table's rows."""
        if points.rank is None:
            return of_tokens
        result = np.empty_like(of_tokens)
        result[self.interpreter.weights[points.rank].numpy()] = of_tokens
        return result

    def _evidence(self, site: Site, weights: Floats, points: Points, observed: Observed) -> Evidence | None:
        from bitwright.passes.sensitivity.metric import Evidence

        product = points.products.get(site.weight)
        if product is None:
            return None
        inputs = observed.values[product.activation]

        def of_logits(rows: slice) -> Floats:
            # The label is known in distribution: E[(1 - p)^2 | label] and the rest sum to p (1 - p).
            p = np.exp(inputs @ weights[rows].T - observed.log_sums[:, None])
            result: Floats = np.sqrt(np.clip(p * (1 - p), 0, None))
            return result

        def of_outputs(rows: slice) -> Floats:
            return observed.gradients[product.output][:, rows]

        def divergence(error: Floats) -> float:
            from bitwright.budgets.simulation import divergence_of_error

            return divergence_of_error(self.interpreter, self._read_for(site, points), site.weight, error)

        return Evidence(inputs, of_logits if _gives_logits(site, points) else of_outputs, divergence)


def _gives_logits(site: Site, points: Points) -> bool:
    """Does the site compute the logits, so that gradients there need no backward pass (and would not fit)?"""
    return site.tied or (site.name.startswith("head") and site.weight in points.products)


def _has_row_per_token(site: Site, points: Points) -> bool:
    return site.kind == "table" or _gives_logits(site, points)


def _watched(batch: list[Site], points: Points) -> tuple[set[str], set[str]]:
    """Names whose values, and whose gradients, a batch needs."""
    values: set[str] = set()
    gradients: set[str] = set()
    for site in batch:
        if not site.weight:
            name = points.caches[int(site.name.split(".")[1])][site.kind == "v_cache"]
            values.add(name)
            gradients.add(name)
            continue
        product = points.products.get(site.weight)
        if product is not None:
            values.add(product.activation)
            if not _gives_logits(site, points):
                gradients.add(product.output)
        if site.kind == "table" and site.weight in points.look_ups:
            gradients.add(points.look_ups[site.weight])
    return values, gradients


def _by_layer(sites: tuple[Site, ...]) -> list[Site]:
    """Caches behind the matrices of their layer, so that a batch reaches back as little as possible."""

    def layer(site: Site) -> int:
        parts = site.name.split(".")
        return int(parts[1]) if parts[0] == "layer" else -1

    return sorted(sites, key=layer)


def site_quantizer(
    site: Site, weights: Floats, moments: Moments | None, method: QuantizerName, codes: Path | None
) -> Callable[[WeightScheme], QuantizedMatrix]:
    """Quantizes the site's matrix to a scheme, or finds its codes in the folder ``codes``."""
    from bitwright.passes.quantizers.kept import KeptCodes
    from bitwright.passes.quantizers.methods import quantize

    moment = None if moments is None or method == "rtn" else moments.of(site.weight)

    def compute(scheme: WeightScheme) -> QuantizedMatrix:
        return quantize(method, weights, scheme, moment)

    if codes is None:
        return compute
    kept = KeptCodes(codes)
    return lambda scheme: kept.get(site.name, scheme, lambda: compute(scheme))
