"""What ``bitwright latency`` does: measures what a latency table lacks for a model, and answers from it.

First kernels one by one, in a process of their own: every product of the model at every scheme that is asked for, and
attention over every cache. Then whole models: one is compiled at a uniform scheme and taken apart while it runs. The
table is written after each batch; what it holds is not measured again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import UnsupportedError, UsageError
from bitwright.options import DEFAULT_CHUNK, DEFAULT_CONTEXT, DEFAULT_SCHEME, Options
from bitwright.plan import uniform_plan
from bitwright.runs import parse_weights
from bitwright.scheme import CacheScheme, LinearScheme
from bitwright.target import Target
from bitwright.tuning import require_runnable

if TYPE_CHECKING:
    from bitwright.autotune.anchor import Anchor
    from bitwright.autotune.isolation import IsolatedWorker
    from bitwright.autotune.latency import LatencyTable
    from bitwright.autotune.predict import Model
    from bitwright.autotune.workload import Workload
    from bitwright.codegen.isa import Isa
    from bitwright.frontend.model import ImportedModel

SCHEMES = (
    *(f"u{bits}g{group}a8" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)),
    *(f"c{bits}g32a8" for bits in (2, 3, 4, 5, 6)),
    *("u2g32za8", "u4g32za8", "u3g64za8", "u4g128a8", "u3rowa8", "u8rowa8", "c4g64a8"),
    *("u2g32a16", "u4g32a16", "u8g32a16", "f16"),
)
"""What is measured of each product unless other schemes are named: of every width something, of every part two."""

CACHES = ("k16v16", *(f"k{bits}g32v{bits}g32" for bits in (8, 6, 5, 4, 3, 2)))
ANCHOR_CACHES = "k16v16"
PROMPT_SIZES = (DEFAULT_CHUNK // 4, DEFAULT_CHUNK)
CONTEXTS = (256, DEFAULT_CONTEXT)
BATCH = 128
"""Kernels that are timed in turns."""

BATCH_SECONDS = 300.0
"""Timing a batch takes seconds; a machine that takes longer than this is not fit for it."""

REPETITIONS = 3

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
            parse_pair(name)
        if any(count < 1 for count in self.threads):
            raise UsageError(f"{min(self.threads)} threads", limit="at least 1", where="--threads")


def parse_pair(text: str) -> tuple[CacheScheme, CacheScheme]:
    """``k4g32v4g32`` as the schemes of K and V. Raises UsageError: something else."""
    key, letter, value = text.partition("v")
    return CacheScheme.parse(key), CacheScheme.parse(letter + value)


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
    from bitwright.autotune.predict import Model

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
    measure_kernels(table, path, wanted, target, tell)
    lacking = [count for count in threads if not _anchored(table, model, count)]
    if lacking:
        with tempfile.TemporaryDirectory() as folder:
            artifact = Path(folder) / "anchor"
            compile_anchor(imported, artifact, request.target, tell)
            tell("measure whole steps and chunks")
            measure_anchors(table, path, artifact, model.digest, lacking)
    return table


def _anchored(table: LatencyTable, model: Model, threads: int) -> bool:
    return any(anchor.model == model.digest and anchor.threads == threads for anchor in table.anchors)


def workloads(model: Model, request: Request, threads: Sequence[int], isa: Isa) -> Iterator[Workload]:
    """Kernels to time: neighbours are what should be compared, the same product at one scheme after the other."""
    from bitwright.autotune.latency import ATTENTION
    from bitwright.autotune.predict import attention_sites, linear_workloads, prompt_workloads
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
                    if all(shape[2] % max(scheme.group, 1) == 0 for scheme in parse_pair(names)):
                        yield Workload(ATTENTION, (*shape, context), names, 1, count, isa.name)


def working_sets(target: Target) -> tuple[int, ...]:
    """Bytes that kernels are timed in: a little more than the last cache level, and up to four times as many."""
    last = max(target.caches.values(), default=32 << 20)
    return last * 3 // 2, last * 5 // 2, 4 * last


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
            for (workload, size), seconds in zip(batch, found, strict=True):
                table.add(Entry(workload, size, seconds))
            write_table(table, path)


def _ask(worker: IsolatedWorker, target: Target, request: dict[str, object], workload: Workload) -> list[float]:
    from bitwright.autotune.isolation import MeasuringError

    try:
        found: list[float] = worker({"target": target.name, **request})
    except MeasuringError as error:
        raise UnsupportedError("a kernel could not be timed", where=str(workload), limit=str(error)) from error
    return found


def compile_anchor(imported: ImportedModel, folder: Path, target: str, tell: Tell) -> None:
    """The model at one scheme, weights rounded to nearest: its numbers play no part."""
    from bitwright import pipeline

    context = min(imported.context, DEFAULT_CONTEXT)
    pipeline.compile_model(imported, folder, Options(target=target, context=context), progress=tell)


def measure_anchors(table: LatencyTable, path: Path, artifact: Path, digest: str, threads: Sequence[int]) -> None:
    """Take an artifact of one uniform scheme apart on each number of threads.

    Args:
        digest: of the model.
    """
    from bitwright.autotune.latency_file import write_table
    from bitwright.runtime.session import load

    for count in threads:
        session = load(artifact, threads=count)
        last = session.context - DEFAULT_CHUNK
        table.add_anchors(
            _anchor(session, digest, tokens, depth, count)
            for tokens, depth in dict.fromkeys(
                [(1, 0), (1, last // 2), (1, last), *((size, 0) for size in PROMPT_SIZES), (DEFAULT_CHUNK, last)]
            )
        )
        write_table(table, path)


def _anchor(session: object, digest: str, tokens: int, depth: int, threads: int) -> Anchor:
    from bitwright.autotune.anchor import Anchor
    from bitwright.runtime.profile import profile_step

    found = profile_step(session, tokens, depth, lambda: 1.0, repetitions=REPETITIONS)  # type: ignore[arg-type]
    linear = sum(kernel.seconds for kernel in found.kernels if kernel.name.startswith("linear"))
    return Anchor(
        digest, DEFAULT_SCHEME, ANCHOR_CACHES, tokens, depth, threads, linear, max(found.seconds - linear, 1e-9)
    )
