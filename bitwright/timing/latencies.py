"""What ``bitwright latency`` does: measures what a latency table lacks for a model, and answers from it.

First kernels one by one, in a process of their own: every product of the model at every scheme that is asked for, and
attention over every cache. Then whole models: compiled at several uniform schemes before, they are taken apart while
they run, in turns. The table is written after each batch; what it holds is not measured again unless it was disturbed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.autotune.attention_latency import caches_of
from bitwright.errors import UnsupportedError, UsageError
from bitwright.options import DEFAULT_CHUNK, DEFAULT_CONTEXT, DEFAULT_SCHEME, Options
from bitwright.plan import uniform_plan
from bitwright.runs import parse_weights
from bitwright.scheme import LinearScheme
from bitwright.target import Target
from bitwright.timing.tuning import require_runnable

if TYPE_CHECKING:
    from bitwright.autotune.anchor import Anchor
    from bitwright.autotune.isolation import IsolatedWorker
    from bitwright.autotune.latency import LatencyTable, Timing
    from bitwright.autotune.products import Model
    from bitwright.autotune.workload import Workload
    from bitwright.codegen.isa import Isa
    from bitwright.frontend.model import ImportedModel
    from bitwright.runtime.breakdown import Breakdown
    from bitwright.runtime.session import Session

SCHEMES = (
    *(f"u{bits}g{group}a8" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)),
    *(f"c{bits}g32a8" for bits in (2, 3, 4, 5, 6)),
    *("u2g32za8", "u4g32za8", "u3g64za8", "u4g128a8", "u3rowa8", "u8rowa8", "c4g64a8"),
    *("u2g32a16", "u4g32a16", "u8g32a16", "f16"),
)
"""What is measured of each product unless other schemes are named: of every width something, of every part two."""

CACHES = ("k16v16", *(f"k{bits}g32r32v{bits}g32r32" for bits in (8, 6, 5, 4, 3, 2)))
ANCHOR_CACHES = "k16v16"
PROMPT_SIZES = (DEFAULT_CHUNK // 4, DEFAULT_CHUNK)
CONTEXTS = (256, 2 * DEFAULT_CONTEXT)
ANCHOR_SCHEMES = ("u2g32a8", "u3g32a8", DEFAULT_SCHEME, "u8g32a8")
"""Of whole models that are measured: the smallest and the largest that plans come to, and closest where the last cache
level holds a part of the weights that changes with their number."""

ANCHOR_CONTEXT = 2 * DEFAULT_CONTEXT + DEFAULT_CHUNK
BATCH = 1024
"""Kernels that are timed in turns: only times of the same minutes compare."""

BATCH_SECONDS = 900.0
"""Timing a batch takes a minute; a machine that takes longer than this is not fit for it."""

REPETITIONS, MOST_REPETITIONS = 3, 8
"""Of a whole step or chunk, and where other work on the machine disturbs it."""

CHUNK_TURNS = 1
"""Runs of a chunk in a repetition: they take long, and scatter less than those of a step."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        schemes: of products; ``caches``: pairs of cache schemes.
        threads: numbers of threads; empty: as many as the target has cores.
        output: the table's file, made or continued; None: in the user's cache.
    """

    target: str = "native"
    schemes: tuple[str, ...] = SCHEMES
    caches: tuple[str, ...] = CACHES
    threads: tuple[int, ...] = ()
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in self.schemes:
            parse_weights(name)
        for name in self.caches:
            caches_of(name)
        if any(count < 1 for count in self.threads):
            raise UsageError(f"{min(self.threads)} threads", limit="at least 1", where="--threads")


def table_of(request: Request) -> tuple[LatencyTable, Path]:
    """The table that the request is about, as far as it has been measured.

    Raises:
        InputError: the file holds another target's, or cannot be read.
    """
    from bitwright.autotune.latency_file import default_file, open_table
    from bitwright.codegen.isa import select_isa

    target = Target.parse(request.target)
    path = request.output or default_file(target.fingerprint)
    return open_table(path, target.fingerprint, select_isa(target.features).name, target.cores), path


def model_of(imported: ImportedModel, tell: Tell) -> Model:
    """The sites of a model."""
    from bitwright import pipeline
    from bitwright.autotune.products import Model

    return Model(pipeline.sites_of(imported, Options(), tell).sites, imported.digest)


def measure_latencies(imported: ImportedModel, model: Model, request: Request, tell: Tell) -> LatencyTable:
    """The table with everything that the request asks for of a model.

    Raises:
        InputError: the table's file cannot be used.
        UnsupportedError: a kernel could not be timed.
        UsageError: this machine cannot run the target's code.
    """
    from bitwright.codegen.isa import select_isa

    target = Target.parse(request.target)
    require_runnable(target)
    table, path = table_of(request)
    path.parent.mkdir(parents=True, exist_ok=True)
    threads = request.threads or (target.cores,)
    wanted = list(workloads(model, request, threads, select_isa(target.features)))
    lacking = [count for count in threads if not _anchored(table, model, count)]
    with tempfile.TemporaryDirectory() as folder:
        # Compiled first, so that kernels and wholes are timed in the same minutes.
        artifacts = compile_anchors(imported, Path(folder), request.target, tell) if lacking else {}
        measure_kernels(table, path, wanted, target, tell)
        if lacking:
            tell("measure whole steps and chunks")
            measure_anchors(table, path, artifacts, model.digest, lacking)
    return table


def _anchored(table: LatencyTable, model: Model, threads: int) -> bool:
    """At every scheme, undisturbed."""
    from bitwright.autotune.latency import DISTURBED

    found = [anchor for anchor in table.anchors if anchor.model == model.digest and anchor.threads == threads]
    return {a.scheme for a in found} >= set(ANCHOR_SCHEMES) and all(a.spread <= DISTURBED for a in found)


def workloads(model: Model, request: Request, threads: Sequence[int], isa: Isa) -> Iterator[Workload]:
    """Kernels to time: neighbours are what should be compared, the same product at one scheme after the other."""
    from bitwright.autotune.latency import ATTENTION
    from bitwright.autotune.products import attention_sites, linear_workloads, prompt_workloads
    from bitwright.autotune.workload import Workload
    from bitwright.codegen.linear import linear_spec, why_illegal

    first = uniform_plan(
        model.sites, LinearScheme.parse(DEFAULT_SCHEME), table=None, cache_bits=16, model="", target=""
    )
    for count in threads:
        products = [
            *linear_workloads(model.sites, first, 1, count, isa.name),
            *(w for m in PROMPT_SIZES for w in prompt_workloads(model.sites, first, m, count, isa.name)),
        ]
        for like in dict.fromkeys(products):
            for name in dict.fromkeys((DEFAULT_SCHEME, *request.schemes)):
                if why_illegal(linear_spec(parse_weights(name), *like.shape), isa) is None:
                    yield Workload(like.op, like.shape, name, like.m, count, isa.name)
        for shape in dict.fromkeys(shape for shape, *_ in attention_sites(model.sites)):
            for context in CONTEXTS:
                for names in dict.fromkeys((ANCHOR_CACHES, *request.caches)):
                    if all(shape[2] % max(scheme.group, 1) == 0 for scheme in caches_of(names)):
                        yield Workload(ATTENTION, (*shape, context), names, 1, count, isa.name)


def working_sets(target: Target) -> tuple[int, ...]:
    """Bytes that kernels are timed in: a little more than the last cache level, and up to four times as many.

    Closest where times change most: a working set of twice the level finds far less of itself there than one of 1.5.
    """
    last = max(target.caches.values(), default=32 << 20)
    return last * 5 // 4, last * 7 // 4, last * 5 // 2, 4 * last


def measure_kernels(table: LatencyTable, path: Path, wanted: Sequence[Workload], target: Target, tell: Tell) -> None:
    """Time what the table lacks, batch by batch."""
    from bitwright.autotune.isolation import IsolatedWorker
    from bitwright.autotune.latency import Entry, missing
    from bitwright.autotune.latency_file import write_table
    from bitwright.autotune.latency_task import ENTRY

    left = missing(table, wanted, working_sets(target))
    done, total = 0, len(left)
    with IsolatedWorker(ENTRY, BATCH_SECONDS) as worker:
        while left:
            batch, left = left[:BATCH], left[BATCH:]
            for number, (workload, _) in enumerate(batch, start=1):
                tell(f"compile kernels {done + number}/{total}")
                _ask(worker, target, {"prepare": workload.to_json()}, workload)
            done += len(batch)
            tell(f"time kernels {done}/{total}")
            asked = [[workload.to_json(), size] for workload, size in batch]
            found = _ask(worker, target, {"time": asked}, batch[0][0])
            for (workload, size), (seconds, spread) in zip(batch, found, strict=True):
                table.add(Entry(workload, size, seconds, spread))
            write_table(table, path)


def _ask(
    worker: IsolatedWorker, target: Target, request: dict[str, object], workload: Workload
) -> list[tuple[float, float]]:
    from bitwright.autotune.isolation import MeasuringError

    try:
        found: list[tuple[float, float]] = worker({"target": target.name, **request})
    except MeasuringError as error:
        raise UnsupportedError("a kernel could not be timed", where=str(workload), limit=str(error)) from error
    return found


def compile_anchors(imported: ImportedModel, folder: Path, target: str, tell: Tell) -> dict[str, Path]:
    """The model at each uniform scheme, weights rounded to nearest: their numbers play no part."""
    from bitwright import pipeline

    context = min(imported.context, ANCHOR_CONTEXT)
    found = {}
    for name in ANCHOR_SCHEMES:
        found[name] = folder / name
        options = Options(scheme=LinearScheme.parse(name), target=target, context=context)
        pipeline.compile_model(imported, found[name], options, progress=tell)
    return found


def measure_anchors(
    table: LatencyTable, path: Path, artifacts: Mapping[str, Path], digest: str, threads: Sequence[int]
) -> None:
    """Take artifacts of uniform schemes apart on each number of threads.

    Args:
        artifacts: by scheme.
        digest: of the model.
    """
    from bitwright.autotune.latency_file import write_table
    from bitwright.runtime.session import load

    for count in threads:
        sessions = {name: load(artifact, threads=count) for name, artifact in artifacts.items()}
        last = min(session.context for session in sessions.values()) - DEFAULT_CHUNK
        steps = [(1, depth) for depth in (0, last // 4, last)]
        chunks = [*((size, 0) for size in PROMPT_SIZES), (DEFAULT_CHUNK, last // 2)]
        found = [
            _anchor(digest, name, tokens, parts)
            for tokens, depth in dict.fromkeys([*steps, *chunks])
            for name, parts in _in_turns(sessions, tokens, depth).items()
        ]
        table.add_anchors(found)
        write_table(table, path)


def _in_turns(sessions: Mapping[str, Session], tokens: int, depth: int) -> dict[str, list[Breakdown]]:
    """Each session's steps, taken apart: a slow minute of the machine hits all of them."""
    from bitwright.autotune.latency import DISTURBED
    from bitwright.runtime.profile import TURNS, profile_step

    turns = TURNS if tokens == 1 else CHUNK_TURNS
    found: dict[str, list[Breakdown]] = {name: [] for name in sessions}
    for number in range(MOST_REPETITIONS):
        for name, session in sessions.items():
            if number < REPETITIONS or _scattered(found[name]) > DISTURBED:
                found[name].append(profile_step(session, tokens, depth, lambda: 1.0, repetitions=1, turns=turns))
    return found


def _scattered(parts: Sequence[Breakdown]) -> float:
    return max(_whole(parts).spread, _products(parts).spread)


def _whole(parts: Sequence[Breakdown]) -> Timing:
    from bitwright.autotune.latency import Timing

    return Timing.of([seconds for part in parts for seconds in part.samples])


def _products(parts: Sequence[Breakdown]) -> Timing:
    """All matrix products of a step or chunk together."""
    from bitwright.autotune.latency import Timing

    return Timing.of([sum(k.seconds for k in part.kernels if k.name.startswith("linear")) for part in parts])


def _anchor(digest: str, scheme: str, tokens: int, parts: Sequence[Breakdown]) -> Anchor:
    from bitwright.autotune.anchor import Anchor

    whole, products = _whole(parts), _products(parts)
    linear, scattered = products.seconds, max(whole.spread, products.spread)
    rest = max(whole.seconds - linear, 1e-9)
    depth, threads = parts[0].depth, parts[0].threads
    return Anchor(digest, scheme, ANCHOR_CACHES, tokens, depth, threads, linear, rest, scattered)
