"""What ``bitwright tune`` does: the linear layers of a model or artifact, tuned one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitwright.errors import UnsupportedError, UsageError
from bitwright.options import Options
from bitwright.plan import Plan
from bitwright.scheme import LinearScheme
from bitwright.target import Target

if TYPE_CHECKING:
    from bitwright.autotune.search import Outcome, Progress
    from bitwright.autotune.strategy import Strategy
    from bitwright.autotune.workload import Workload
    from bitwright.site import Site

StrategyName = Literal["xgboost", "random"]
STRATEGIES: tuple[StrategyName, ...] = ("xgboost", "random")
TOKENS = (1, 128, 512)
CANDIDATE_SECONDS = 30.0
"""A candidate that takes longer to build, check and time has failed."""

_LINEAR = re.compile(r"linear_(?P<scheme>[a-z0-9]+)_(?P<outputs>\d+)x(?P<inputs>\d+)(_decode)?")


@dataclass(frozen=True)
class Request:
    """How to search.

    Attributes:
        tokens: numbers of them that kernels are tuned at; 1 is decoding.
        trials: candidates of each workload; ``seconds``: for each workload, None without limit.
        output: file of records, made or continued.
    """

    target: str = "native"
    tokens: tuple[int, ...] = TOKENS
    trials: int = 48
    strategy: StrategyName = "xgboost"
    seconds: float | None = None
    seed: int = 0
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"'{self.strategy}' is no strategy", limit=", ".join(STRATEGIES), where="--strategy")
        if not self.tokens or min(self.tokens) < 1:
            raise UsageError(f"tokens {self.tokens}", limit="numbers from 1", where="--tokens")
        if self.trials < 1:
            raise UsageError(f"{self.trials} trials", limit="at least 1", where="--trials")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"{self.seconds} seconds", limit="more than 0", where="--seconds")

    def make_strategy(self) -> Strategy:
        from bitwright.autotune.cost_model import XGBoostSearch
        from bitwright.autotune.strategy import RandomSearch

        return XGBoostSearch(self.seed) if self.strategy == "xgboost" else RandomSearch(self.seed)


def tune_workloads(workloads: Iterable[Workload], request: Request, progress: Progress) -> Iterator[Outcome]:
    """Search for each workload that has knobs; what was found is in the records file after each candidate.

    Raises:
        UnsupportedError: none has knobs, or not one candidate of a workload could be measured.
        InputError: the records file cannot be used.
        UsageError: this machine cannot run the target's code.
    """
    from bitwright.autotune.isolation import IsolatedWorker
    from bitwright.autotune.linear_task import ENTRY, linear_task, measure_with
    from bitwright.autotune.records import RecordFile
    from bitwright.autotune.search import tune
    from bitwright.autotune.store import user_file

    target = Target.parse(request.target)
    require_runnable(target)
    tasks = [task for workload in dict.fromkeys(workloads) if (task := linear_task(workload, target.tune)) is not None]
    if not tasks:
        raise UnsupportedError("there is nothing to tune", limit="no kernel of this model has knobs on this target")
    path = request.output or user_file(target.fingerprint)
    if request.output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    strategy = request.make_strategy()
    with RecordFile(path, target.fingerprint) as file, IsolatedWorker(ENTRY, CANDIDATE_SECONDS) as worker:
        measure = measure_with(worker, request.target)
        for task in tasks:
            yield tune(task, strategy, measure, file, trials=request.trials, seconds=request.seconds, progress=progress)


def require_runnable(target: Target) -> None:
    """Raises UsageError: this machine cannot run the target's code."""
    from bitwright.codegen.isa import select_isa

    isa = select_isa(target.features)
    if not isa.runs_with(Target.parse("native").features):
        raise UsageError(
            f"this machine cannot run code for {target.name}",
            limit=f"kernels for {isa.name} are measured where they run",
            remedy="tune on such a machine and pass its records to compile --records",
        )


def workloads_of(model: str, request: Request, scheme: str | None = None) -> list[Workload]:
    """The linear layers of an artifact folder, or of a model at a scheme, for one token and for many.

    Raises:
        InputError, UnsupportedError, UsageError: as opening an artifact or compiling the model.
    """
    from bitwright.autotune.workload import Workload
    from bitwright.codegen.isa import select_isa

    target = Target.parse(request.target)
    isa = select_isa(target.features)
    folder = Path(model)
    if (folder / "manifest.json").is_file():
        if scheme is not None:
            raise UsageError("an artifact has its own schemes", where="--scheme", remedy="leave --scheme out")
        products = list(_of_artifact(folder))
    else:
        options = Options() if scheme is None else Options(scheme=LinearScheme.parse(scheme))
        products = list(_of_model(model, options, target))
    # The last product makes logits, which prompts compute for one token only.
    return [
        Workload("linear", shape, name, m, target.cores, isa.name)
        for m in dict.fromkeys(request.tokens)
        for shape, name in dict.fromkeys(products if m == 1 else products[:-1])
    ]


Product = tuple[tuple[int, int], str]


def _of_artifact(folder: Path) -> Iterator[Product]:
    """From the decode step's kernels, which the manifest names."""
    from bitwright.runtime.artifact import Artifact

    step = Artifact.open(folder).manifest.interface.step
    if step is None:
        raise UnsupportedError(
            "the artifact does not tell its kernels", where=str(folder), remedy="tune the model it was compiled from"
        )
    for task in step.tasks:
        match = _LINEAR.fullmatch(task[0])
        if match:
            yield (int(match["outputs"]), int(match["inputs"])), match["scheme"]


def _of_model(model: str, options: Options, target: Target) -> Iterator[Product]:
    from bitwright import pipeline

    imported = pipeline.load_model(model, lambda _: None, options.context)
    plan, program = pipeline.plan_and_program(imported, options, target, lambda _: None)
    yield from _products(program.sites, plan)


def _products(sites: tuple[Site, ...], plan: Plan) -> Iterator[Product]:
    from bitwright.autotune.products import linear_workloads

    for workload in linear_workloads(sites, plan, 1, 1, "any"):
        outputs, inputs = workload.shape
        yield (outputs, inputs), workload.scheme


def to_json(outcomes: list[Outcome], request: Request) -> dict[str, Any]:
    """One JSON document."""
    return {
        "target": Target.parse(request.target).fingerprint,
        "strategy": request.strategy,
        "trials": request.trials,
        "workloads": [outcome.to_json() for outcome in outcomes],
    }
