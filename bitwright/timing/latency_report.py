"""What ``bitwright latency`` shows: products, steps and prompts at each scheme, measured or predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import UnsupportedError, UsageError
from bitwright.options import DEFAULT_CHUNK, DEFAULT_SCHEME
from bitwright.plan import Plan, uniform_plan
from bitwright.runs import parse_weights
from bitwright.scheme import LinearScheme
from bitwright.target import Target
from bitwright.timing.latencies import Request, measure_latencies, model_of, table_of

if TYPE_CHECKING:
    from bitwright.autotune.latency import LatencyTable
    from bitwright.autotune.predict import Prediction
    from bitwright.autotune.products import Model

Rows = tuple[tuple[str, "Forecast"], ...]


@dataclass(frozen=True)
class Forecast:
    """Of one plan: ``products``: milliseconds of each product (None: no such kernel), and what they come to."""

    products: tuple[float | None, ...]
    step: Prediction | None
    prompt: Prediction | None

    def to_json(self) -> dict[str, Any]:
        return {
            "products_ms": list(self.products),
            "step": None if self.step is None else asdict(self.step),
            "prompt": None if self.prompt is None else asdict(self.prompt),
        }


@dataclass(frozen=True)
class Report:
    """A table with what follows from it for one model.

    Attributes:
        shapes: of the model's products.
        uniform: by number of threads, each scheme with the forecast of the model at it.
        plan: by number of threads, the forecast of the plan that was asked for.
        errors: by number of threads, mean relative errors of predictions, found by leaving measurements out.
        disturbed: spreads of the measurements that scatter too much, by what was measured.
    """

    file: Path
    digest: str
    fingerprint: str
    isa: str
    kernels: int
    context: int
    prompt: int
    shapes: tuple[tuple[int, int], ...]
    uniform: Mapping[int, Rows]
    plan: Mapping[int, Forecast]
    errors: Mapping[int, Mapping[str, float]]
    disturbed: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        return {
            "file": str(self.file),
            "digest": self.digest,
            "target": self.fingerprint,
            "isa": self.isa,
            "measurements": self.kernels,
            "context": self.context,
            "prompt": self.prompt,
            "shapes": [list(shape) for shape in self.shapes],
            "rows": [
                {"threads": threads, "scheme": name, **row.to_json()}
                for threads, rows in self.uniform.items()
                for name, row in rows
            ],
            "plan": [{"threads": threads, **row.to_json()} for threads, row in self.plan.items()],
            "errors": [{"threads": threads, **errors} for threads, errors in self.errors.items()],
            "disturbed": dict(self.disturbed),
        }


def report(
    model: str,
    request: Request,
    tell: Callable[[str], None],
    *,
    plan: Path | None = None,
    context: int = 1,
    prompt: int = 512,
    measure: bool = True,
) -> Report:
    """Measure what the table lacks, unless that is not wanted, and answer from it.

    Raises:
        InputError, UnsupportedError, UsageError: as ``measure_latencies``; or nothing is known and may be measured.
    """
    from bitwright import pipeline
    from bitwright.autotune.latency_file import digest

    if context < 1 or prompt < 1:
        raise UsageError(f"a context of {context} and a prompt of {prompt} tokens", limit="at least 1")
    chosen = None if plan is None else Plan.read(plan)
    table, path = table_of(request)
    imported = pipeline.load_model(model, tell)
    found = model_of(imported, tell)
    if chosen is not None:
        chosen.check_sites(found.sites, where=str(plan))
    if measure:
        table = measure_latencies(imported, found, _with_plan(request, found, chosen), tell)
    threads = request.threads or (Target.parse(request.target).cores,)
    names = dict.fromkeys((DEFAULT_SCHEME, *request.schemes))
    reader = _Reader(table, found, context, prompt)
    return Report(
        file=path,
        digest=digest(table),
        fingerprint=table.fingerprint,
        isa=table.isa,
        kernels=len(table.entries),
        context=context,
        prompt=prompt,
        shapes=reader.shapes,
        uniform={t: tuple((name, reader.uniform(name, t)) for name in names) for t in threads},
        plan={} if chosen is None else {t: reader.forecast(chosen, t) for t in threads},
        errors={t: reader.errors(t) for t in threads},
        disturbed=table.disturbed,
    )


def _with_plan(request: Request, model: Model, plan: Plan | None) -> Request:
    """The request with what the plan is made of, which could not be predicted otherwise."""
    from bitwright.autotune.products import schemes_in

    if plan is None:
        return request
    schemes, caches = schemes_in(model.sites, plan)
    return replace(request, schemes=(*request.schemes, *schemes), caches=(*request.caches, *caches))


class _Reader:
    def __init__(self, table: LatencyTable, model: Model, context: int, prompt: int) -> None:
        from bitwright.autotune.products import linear_workloads

        self.table, self.model, self.context, self.prompt = table, model, context, prompt
        first = self._uniform(DEFAULT_SCHEME)
        shapes = (work.shape for work in linear_workloads(model.sites, first, 1, 1, table.isa))
        self.shapes = tuple((outputs, inputs) for outputs, inputs in dict.fromkeys(shapes))

    def _uniform(self, scheme: str) -> Plan:
        return uniform_plan(
            self.model.sites, LinearScheme.parse(scheme), table=None, cache_bits=16, model=self.model.digest, target=""
        )

    def uniform(self, scheme: str, threads: int) -> Forecast:
        """Of every matrix at one scheme; a whole only if all of them can have it."""
        from bitwright.autotune.products import working_set
        from bitwright.codegen.isa import ISAS
        from bitwright.codegen.linear import linear_spec, why_illegal

        isa = next(isa for isa in ISAS if isa.name == self.table.isa)
        plan = self._uniform(scheme)
        size = working_set(self.model.sites, plan, self.context)
        times = [
            self.table.milliseconds("linear", shape, scheme, 1, threads, size)
            if why_illegal(linear_spec(parse_weights(scheme), *shape), isa) is None
            else None
            for shape in self.shapes
        ]
        if None in times:
            return Forecast(tuple(times), None, None)
        return Forecast(tuple(times), *self._whole(plan, threads))

    def forecast(self, plan: Plan, threads: int) -> Forecast:
        return Forecast((), *self._whole(plan, threads))

    def _whole(self, plan: Plan, threads: int) -> tuple[Prediction, Prediction]:
        from bitwright.autotune.predict import predict_prompt, predict_step

        return (
            predict_step(self.table, self.model, plan, self.context, threads),
            predict_prompt(self.table, self.model, plan, self.prompt, DEFAULT_CHUNK, threads),
        )

    def errors(self, threads: int) -> dict[str, float]:
        found = {}
        for kind, tokens in (("decoding", 1), ("prompts", DEFAULT_CHUNK)):
            try:
                prices = self.table.prices(tokens, threads)
            except UnsupportedError:
                continue
            nearest = prices[max(prices)][max(prices[max(prices)])]
            found[f"{kind}, other shapes"] = nearest.error
            found[f"{kind}, other schemes"] = nearest.scheme_error
        return found
