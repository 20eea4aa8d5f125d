"""What ``bitwright allocate`` does: from a profile and budgets to a plan whose bytes are the artifact's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitwright.allocation import RESOURCES, Allocation, Budgets, Decision, Grain, Resource
from bitwright.budgets.storage import cache_bytes, cache_bytes_per_token, cache_fixed_bytes, weights_file_bytes
from bitwright.errors import InfeasibleError, UnsupportedError, UsageError
from bitwright.options import DEFAULT_CHUNK
from bitwright.passes.allocate.choices import Latencies, SiteChoices, Terms, choices_of, problem_of
from bitwright.passes.allocate.dual import Infeasible
from bitwright.passes.allocate.problem import Problem, Vertex
from bitwright.passes.allocate.solve import Method, Solution, solve
from bitwright.plan import ORDER, Plan
from bitwright.runs import Scheme
from bitwright.sensitivity import Profile, ProfileHeader

Doubles = npt.NDArray[np.float64]

MAX_RUNS = 3
"""Runs of a matrix at most: more hardly lower the loss, and every combination of runs is code of its own."""

EXACT_ROUNDS = 10
"""Times that sums over the choices are corrected by what the whole plan takes, until it meets its bytes and times."""

PRICE_ROUNDS = 5
"""Times that a plan is solved again because it reads another number of bytes than its times were counted for."""

FULL_PRECISION_SHARE = 0.999
"""Of a limit that a plan uses when there is nothing left to gain from another round."""

NEARLY = 1 - (1 - FULL_PRECISION_SHARE) / 2
"""The part of a limit that is aimed at between two plans: a little less, so that rounding does not miss it."""


@dataclass(frozen=True)
class Settings:
    """How to allocate.

    Attributes:
        grain: ``tile``: matrices may be cut into runs of 64 rows; ``matrix``: one scheme for each.
        max_runs: of a matrix.
        activations: bits to choose from; None: 8, and 16 as well if a time is bounded or minimised.
        latencies: of the target; None: unknown.
        factors: measured corrections of losses, by site: see ``bitwright.budgets.correction``.
    """

    grain: Grain = "tile"
    max_runs: int = MAX_RUNS
    activations: tuple[int, ...] | None = None
    latencies: Latencies | None = None
    factors: Mapping[str, float | Doubles] = field(default_factory=dict)


def settings_for(
    profile: Profile, budgets: Budgets, grain: str, table: Path | None = None, max_runs: int = MAX_RUNS
) -> Settings:
    """Settings from the names that users write.

    Raises:
        UsageError: no grain has the name, or a matrix would have no run.
        UnsupportedError, InputError: the latency table that was named knows nothing of the model, or is damaged.
    """
    if grain not in ("tile", "matrix"):
        raise UsageError(f"'{grain}' is not a grain", where="--grain", limit="tile or matrix")
    if max_runs < 1:
        raise UsageError(f"{max_runs} runs of a matrix", where="--max-runs", limit="at least 1")
    latencies = latencies_for(profile.header, budgets, table)
    return Settings("tile" if grain == "tile" else "matrix", max_runs, latencies=latencies)


def latencies_for(header: ProfileHeader, budgets: Budgets, file: Path | None = None) -> Latencies | None:
    """What `bitwright latency` measured of the model on the profile's target, None if it was never measured there.

    Args:
        file: a latency table; None: the user's own, if it has the model.
    """
    from bitwright.autotune.costs import SiteCosts
    from bitwright.autotune.products import Model
    from bitwright.timing.latencies import Request, table_of

    table, _ = table_of(Request(target=header.target_name, output=file))
    if file is None and not any(anchor.model == header.digest for anchor in table.anchors):
        return None
    model, chunk = Model(header.sites, header.digest), min(budgets.prompt, DEFAULT_CHUNK)
    return SiteCosts(table, model, budgets.context or 1, chunk, working_set=int(budgets.max_bytes or 0))


def terms_of(budgets: Budgets, settings: Settings) -> Terms:
    """What choices are counted for under these budgets.

    Raises:
        UsageError: a time is bounded or minimised, and nothing says how long anything takes.
    """
    timed = budgets.max_decode_ms is not None or budgets.max_prefill_ms is not None
    timed = timed or budgets.objective in ("decode_ms", "prefill_ms")
    if timed and settings.latencies is None:
        raise UsageError(
            "times are bounded, but no latencies are known",
            where="--max-decode-ms, --max-prefill-ms",
            remedy="measure them with `bitwright latency MODEL`, or bound bytes instead",
        )
    activations = settings.activations or ((8, 16) if timed else (8,))
    latencies = settings.latencies if timed else None
    return Terms(settings.grain, activations, budgets.context or 0, budgets.prompt, latencies, settings.factors)


def site_choices(
    profile: Profile, budgets: Budgets, settings: Settings | None = None
) -> dict[str, tuple[Decision, ...]]:
    """Every site's choices as wholes, in the model's order: what each would use."""
    settings = replace(settings or Settings(), grain="matrix")
    return {
        choices.site.name: tuple(
            Decision(choices.site.name, scheme, _named(choices.uses[:, 0, i] + choices.starts[:, i]))
            for i, scheme in enumerate(choices.schemes)
        )
        for choices in choices_of(profile, terms_of(budgets, settings))
    }


def _named(uses: Doubles) -> dict[Resource, float]:
    return dict(zip(RESOURCES, uses.tolist(), strict=True))


def allocate(profile: Profile, budgets: Budgets, settings: Settings | None = None) -> Allocation:
    """The best plan within the budgets.

    Raises:
        InfeasibleError: there is none; names the binding bounds and what can be achieved.
        UsageError: a time is bounded without latencies.
    """
    settings = settings or Settings()
    best = found = _allocate(profile, budgets, settings)
    for _ in range(PRICE_ROUNDS if terms_of(budgets, settings).latencies else 0):
        assert settings.latencies is not None
        priced = settings.latencies.reading(found.plan.schemes)
        if priced is settings.latencies:
            break
        settings = replace(settings, latencies=priced)
        try:
            found = _allocate(profile, budgets, settings)
        except InfeasibleError:  # by this round's sums of times, which are not the whole's
            break
        best = min(best, found, key=lambda plan: plan.value)
    return best


def _allocate(profile: Profile, budgets: Budgets, settings: Settings) -> Allocation:
    """The best plan within the budgets, with latencies as they are priced."""
    terms = terms_of(budgets, settings)
    choices = choices_of(profile, terms)
    fixed = _fixed(profile, choices, terms)
    max_runs = settings.max_runs if settings.grain == "tile" else 1
    problem = problem_of(choices, fixed, max_runs)
    limits = _limits(profile, budgets)
    objective = RESOURCES.index(budgets.objective)
    method: Method = "exact" if settings.grain == "matrix" else "columns"
    aim = dict(limits)
    seen: dict[int, list[Seen]] = {resource: [] for resource in limits}
    best: tuple[Solution, dict[str, Scheme], int] | None = None
    for _ in range(EXACT_ROUNDS):
        found = solve(problem, objective, aim, method)
        if isinstance(found, Infeasible):
            if best is not None:
                break
            raise _infeasible(problem, limits, found)
        schemes = _schemes(problem, choices, found.vertex)
        stored = weights_file_bytes(profile.header, schemes, budgets.context)
        whole = _whole(profile, terms, found.vertex.uses, schemes, stored)
        missed = [resource for resource, limit in limits.items() if whole[resource] > limit]
        if not missed and (best is None or found.vertex.uses[objective] < best[0].vertex.uses[objective]):
            best = (found, schemes, stored)
        if not missed and max(whole[r] / limit for r, limit in limits.items()) >= FULL_PRECISION_SHARE:
            break
        for resource in limits:
            seen[resource].append(Seen(float(found.vertex.uses[resource]), whole[resource]))
        # Integer programs meet their bounds within a tolerance; plans bound by KL may have no more than that to spare.
        beyond = {resource: max(float(found.vertex.uses[resource]) - aim[resource], 0.0) for resource in limits}
        changed = {r: next_aim(r, limit, seen[r]) - 2 * beyond[r] for r, limit in limits.items()}
        if changed == aim:
            break
        aim = changed
    if best is None:
        raise _infeasible(problem, limits, Infeasible(dict.fromkeys(missed, 1.0)))
    return _allocation(profile, budgets, settings, problem, choices, *best)


class Seen(NamedTuple):
    """What the choices of a plan added up to, and what the whole plan uses."""

    added: float
    whole: float


def next_aim(resource: int, limit: float, seen: Sequence[Seen]) -> float:
    """What choices may add up to, so that the whole meets a limit.

    Between the plans that came closest to it from both sides, if there are two: how much longer a whole step takes than
    its parts depends on how much it reads. Else by what the last plan tells: headers are added to bytes, times are
    scaled.
    """
    below = max((plan for plan in seen if plan.whole <= limit), key=lambda plan: plan.whole, default=None)
    above = min((plan for plan in seen if plan.whole > limit), key=lambda plan: plan.whole, default=None)
    if below is not None and above is not None and below.added < above.added:
        share = (limit * NEARLY - below.whole) / (above.whole - below.whole)
        return below.added + max(share, 0.0) * (above.added - below.added)
    added, whole = seen[-1]
    return limit * added / whole if RESOURCES[resource].endswith("_ms") else limit - (whole - added)


def _whole(
    profile: Profile, terms: Terms, uses: Doubles, schemes: Mapping[str, Scheme], stored: int
) -> dict[int, float]:
    """What a whole plan uses of each resource: no sum over its choices, but exact bytes and the best prediction."""
    found = dict(enumerate(uses.tolist()))
    found[RESOURCES.index("bytes")] = stored + cache_bytes(profile.header, schemes, terms.context)
    if terms.latencies is not None:
        found[RESOURCES.index("decode_ms")] = terms.latencies.step(schemes)
        found[RESOURCES.index("prefill_ms")] = terms.latencies.prompt(schemes, terms.prompt)
    return found


def _fixed(profile: Profile, choices: tuple[SiteChoices, ...], terms: Terms) -> Doubles:
    """What is used whatever is chosen: other tensors and the file's header, and kernels that no choice changes."""
    schemes: dict[str, Scheme] = {choice.site.name: choice.schemes[-1] for choice in choices}
    matrices = sum(float(c.uses[1, :, -1].sum() + c.starts[1, -1]) for c in choices if c.site.weight)
    stored = weights_file_bytes(profile.header, schemes, terms.context or None) - matrices
    latencies = terms.latencies
    decode = 0.0 if latencies is None else latencies.decode_fixed
    prefill = 0.0 if latencies is None else latencies.prefill_fixed * terms.prompt / latencies.chunk
    return np.array([0.0, stored, decode, prefill])


def _limits(profile: Profile, budgets: Budgets) -> dict[int, float]:
    limits = {RESOURCES.index(name): bound for name, bound in budgets.limits.items()}
    if budgets.avg_bits is not None:
        parameters = sum(site.parameters for site in profile.header.sites)
        at = RESOURCES.index("bytes")
        limits[at] = min(limits.get(at, np.inf), budgets.avg_bits * parameters / 8)
    return limits


def _schemes(problem: Problem, choices: tuple[SiteChoices, ...], vertex: Vertex) -> dict[str, Scheme]:
    picked: dict[int, Scheme] = {}
    for block, chosen in zip(problem.blocks, vertex.choices, strict=True):
        for row, number in enumerate(block.sites):
            picked[number] = choices[number].scheme(chosen[row])
    return {choice.site.name: picked[number] for number, choice in enumerate(choices)}


def _allocation(
    profile: Profile,
    budgets: Budgets,
    settings: Settings,
    problem: Problem,
    choices: tuple[SiteChoices, ...],
    solution: Solution,
    schemes: dict[str, Scheme],
    stored: int,
) -> Allocation:
    uses = solution.vertex.uses
    by_number: dict[int, Doubles] = {}
    for block, used in zip(problem.blocks, solution.vertex.by_site, strict=True):
        by_number |= {number: used[:, row] for row, number in enumerate(block.sites)}
    predicted = {"kl": float(uses[0]), **_times(budgets, settings.latencies, schemes)}
    objective = float(uses[RESOURCES.index(budgets.objective)])
    prices: dict[Resource, float] = {RESOURCES[number]: price for number, price in solution.prices.items()}
    allocation = Allocation(
        plan=Plan(schemes, profile.header.digest, profile.header.target),
        budgets=budgets,
        bytes=stored,
        kv_bytes_per_token=cache_bytes_per_token(profile.header, schemes),
        kv_fixed_bytes=cache_fixed_bytes(profile.header, schemes),
        predicted=predicted,
        gap=max(0.0, (objective - solution.bound) / objective) if objective else 0.0,
        binding=tuple(name for name, price in prices.items() if price > 0),
        prices=prices,
        decisions=tuple(
            Decision(c.site.name, schemes[c.site.name], _named(by_number[n])) for n, c in enumerate(choices)
        ),
    )
    notes: dict[str, Any] = {"strategy": f"allocate by {settings.grain}", "profile": profile.digest}
    notes |= {"metric": profile.header.metric, "quantizer": profile.header.quantizer}
    notes |= {"compile": list(profile.header.compile_options), ORDER: profile.header.reordered}
    notes |= {"calibration": profile.header.calibration, **allocation.to_json()}
    return replace(allocation, plan=replace(allocation.plan, notes=notes))


def _times(budgets: Budgets, latencies: Latencies | None, schemes: Mapping[str, Scheme]) -> dict[str, float]:
    """Milliseconds of a step and of the prompt; empty if they are unknown for any scheme in use."""
    if latencies is None:
        return {}
    try:
        return {"decode_ms": latencies.step(schemes), "prefill_ms": latencies.prompt(schemes, budgets.prompt)}
    except UnsupportedError:
        return {}


def _figure(resource: str, value: float) -> str:
    """Whole bytes, and anything else to six digits."""
    return f"{value:.0f}" if resource == "bytes" else f"{value:.6g}"


def _infeasible(problem: Problem, limits: Mapping[int, float], proof: Infeasible) -> InfeasibleError:
    ranges = []
    for resource in limits:
        weights = np.zeros(len(RESOURCES))
        weights[resource] = 1.0
        least = problem.best(weights).uses[resource]
        loosest = np.zeros(len(RESOURCES))
        loosest[0 if resource else 1] = 1.0
        most = problem.best(loosest).uses[resource]
        figures = [_figure(RESOURCES[resource], value) for value in (least, most, limits[resource])]
        ranges.append("{} from {} to {} (asked: {})".format(RESOURCES[resource], *figures))
    binding = ", ".join(RESOURCES[resource] for resource, share in proof.shares.items() if share > 0)
    together = " together" if sum(share > 0 for share in proof.shares.values()) > 1 else ""
    return InfeasibleError(
        "no plan meets the budgets",
        where=f"binding{together}: {binding}",
        limit=f"achievable one by one: {'; '.join(ranges)}",
        remedy="raise the binding budget, or profile narrower schemes with --schemes",
    )
