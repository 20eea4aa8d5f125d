"""Ask every strategy for its plans: a profile for each metric, a problem for each budget and target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from bitwright.allocation import Budgets
from bitwright.budgets.storage import cache_bytes, weights_file_bytes
from bitwright.drawing import write_whole
from bitwright.errors import InfeasibleError, InputError
from bitwright.options import QuantizerName
from bitwright.passes.allocate.choices import Latencies
from bitwright.plans.costs import Costs
from bitwright.sensitivity import Profile, ProfileHeader
from bitwright.study.cell import Cell
from bitwright.study.problem import Problem, Schemes
from bitwright.study.request import StudyRequest
from bitwright.study.restricted import retargeted
from bitwright.study.strategy import Strategy

DEFAULT_QUANTIZER: QuantizerName = "auto"

Tell = Callable[[str], None]


@dataclass
class Desk:
    """Solves in the folder of a report, where profiles and plans are kept."""

    request: StudyRequest
    folder: Path
    tell: Tell
    _profiles: dict[str, Profile] = field(default_factory=dict, repr=False)

    def cells(self, strategies: tuple[Strategy, ...]) -> Iterator[Cell]:
        """Every strategy's answer to every budget on every target, and those plans on the other targets."""
        for budget in self.request.budgets:
            for strategy in strategies:
                self.tell(f"solve {strategy.name} at {budget} bytes")
                own = [self._solved(strategy, budget, target) for target in self.request.targets]
                yield from own
                yield from _on_each_other(own)

    def digest(self, strategies: tuple[Strategy, ...]) -> str:
        """Of the model that the profiles were made of.

        Raises:
            InputError: they are of several.
        """
        digests = {self.profile(strategy.metric).header.digest for strategy in strategies}
        if len(digests) > 1:
            raise InputError(
                "the profiles are of different models",
                where=", ".join(sorted(digest[:16] for digest in digests)),
                remedy="pass profiles of the model of this study",
            )
        return digests.pop()

    @property
    def quantizer(self) -> QuantizerName:
        """The one that was asked for, else that of the profiles that were given."""
        if self.request.quantizer is not None:
            return self.request.quantizer
        for path in self.request.profiles:
            return Profile.read(path).header.quantizer  # type: ignore[return-value]  # it was one when it was profiled
        return DEFAULT_QUANTIZER

    def codes(self, profile: Profile) -> Path | None:
        """The folder in which a profile kept codes of this study's quantizer, None if it kept none."""
        kept = profile.folder / "codes"
        return kept if profile.header.quantizer == self.quantizer and kept.exists() else None

    def profile(self, metric: str) -> Profile:
        """The profile of a metric: one that was given, one in the folder, or a new one."""
        if metric not in self._profiles:
            given = [found for path in self.request.profiles if (found := Profile.read(path)).header.metric == metric]
            self._profiles[metric] = given[0] if given else self._made(metric)
        return self._profiles[metric]

    def _made(self, metric: str) -> Profile:
        from bitwright.budgets.profile_options import ProfileOptions
        from bitwright.budgets.profiling import profile_model

        request = self.request
        options = ProfileOptions(
            target=request.targets[0],
            metric=metric,
            quantizer=self.quantizer,
            calibration=request.calibration,
            codes=self.folder / "profiles" / metric / "codes",
        )
        return profile_model(
            request.model,
            self.folder / "profiles" / metric,
            options,
            tell=lambda text: self.tell(f"profile by {metric}: {text}"),
        )

    def _solved(self, strategy: Strategy, budget: int, target: str) -> Cell:
        problem = self.problem(strategy.metric, budget, target)
        unit = problem.costs.profile.header.unit
        try:
            cell = Cell(strategy, budget, target, target, strategy.solve(problem), unit)
        except InfeasibleError as error:
            return Cell(strategy, budget, target, target, None, unit, str(error))
        assert cell.plan is not None
        (self.folder / "plans").mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "plans" / f"{cell.name}.json", cell.plan.to_json().encode())
        return cell

    def problem(self, metric: str, budget: int, target: str) -> Problem:
        """What a strategy of a metric is given."""
        profile, context = retargeted(self.profile(metric), target), self.request.context
        header, latencies = profile.header, self.latencies(profile.header)

        def size(schemes: Schemes) -> int:
            return weights_file_bytes(header, schemes, context) + cache_bytes(header, schemes, context or 0)

        return Problem(Costs(profile, context), Budgets(max_bytes=budget, context=context), size, latencies)

    def latencies(self, header: ProfileHeader) -> Latencies | None:
        """What is known of the target's kernels for this model: measured before, by ``bitwright latency``."""
        from bitwright.autotune.costs import SiteCosts
        from bitwright.autotune.latency_file import read_table
        from bitwright.autotune.products import Model
        from bitwright.timing.latencies import Request, table_of

        tables = [read_table(path) for path in self.request.latencies]
        tables.append(table_of(Request(target=header.target_name))[0])
        for table in tables:
            of_model = any(anchor.model == header.digest for anchor in table.anchors)
            if table.fingerprint == header.target and of_model:
                return SiteCosts(table, Model(header.sites, header.digest), context=self.request.context or 1)
        return None


def _on_each_other(own: list[Cell]) -> Iterator[Cell]:
    """Plans on the targets that they were not made for, where those have plans of their own that differ."""
    for one in own:
        for other in own:
            if one.plan and other.plan and one.digest != other.digest:
                yield replace(one, target=other.target)
