"""Is allocation worth it? Plans against the best uniform schemes of the same bytes, predictions against measurement.

    python -m benchmarks.allocation PROFILE --text FILE -o DIR

For each budget the joint plan (row tiles) and the best uniform schemes (one for all linear layers, one for the table)
that fit are measured on a text nothing was fitted to: Kullback-Leibler divergence from the float model over the second
half of windows of 512 tokens, simulated in torch (``bitwright.budgets.simulation``). Random plans show how well
predicted divergences rank. A synthetic knapsack shows time and gap with a million tiles. Every measurement is kept in
``DIR/allocation.json``: run again to go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from bitwright.allocation import Budgets, Decision
from bitwright.budgets.allocating import Settings, allocate, site_choices
from bitwright.budgets.correction import Measurer, allocate_corrected
from bitwright.budgets.storage import weights_file_bytes
from bitwright.moments import Ids
from bitwright.passes.allocate.dual import Infeasible
from bitwright.passes.allocate.problem import Block, Problem
from bitwright.passes.allocate.solve import solve
from bitwright.runs import Scheme
from bitwright.scheme import LinearScheme
from bitwright.sensitivity import Profile

BUDGETS = "110,92,78,66,56,50"
LENGTH = 512


@dataclass
class Figures:
    """What was measured so far, written after every entry."""

    path: Path
    key: Mapping[str, Any]
    entries: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, key: Mapping[str, Any]) -> Figures:
        if not path.exists():
            return cls(path, key)
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["key"] != dict(key):
            raise SystemExit(f"{path} holds figures of another profile or text: choose another folder")
        return cls(path, key, document["entries"])

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """The entry, measured if it is missing."""
        if name not in self.entries:
            self.entries[name] = measure()
            partial = self.path.with_suffix(".part")
            partial.write_text(json.dumps({"key": dict(self.key), "entries": self.entries}, indent=1) + "\n")
            partial.replace(self.path)
            typer.echo(f"{name}: {json.dumps(self.entries[name])}", err=True)
        return self.entries[name]


def uniform_plans(profile: Profile, choices: Mapping[str, tuple[Decision, ...]]) -> list[dict[str, Scheme]]:
    """Every scheme for the linear layers with every scheme for the table, 8-bit activations and 16-bit caches."""
    names = [name for name in profile.header.weights if all(_has(found, name) for found in choices.values())]
    tabled = [choices[site.name] for site in profile.header.sites if site.kind == "table"]
    tables = [*names, *(name for name in profile.header.table_weights if all(_has(found, name) for found in tabled))]
    plans = []
    for linear in names:
        for table in tables:
            plan: dict[str, Scheme] = {}
            for site in profile.header.sites:
                wanted = f"{table if site.kind == 'table' else linear}a8" if site.weight else f"{site.kind[0]}16"
                plan[site.name] = next(d.scheme for d in choices[site.name] if d.scheme.name == wanted)
            plans.append(plan)
    return plans


def _has(found: tuple[Decision, ...], name: str) -> bool:
    return not isinstance(found[0].scheme, LinearScheme) or any(d.scheme.name == f"{name}a8" for d in found)


def predicted(choices: Mapping[str, tuple[Decision, ...]], plan: Mapping[str, Scheme]) -> float:
    return sum(next(d.uses["kl"] for d in choices[site] if d.scheme == scheme) for site, scheme in plan.items())


def random_plan(choices: Mapping[str, tuple[Decision, ...]], seed: int) -> dict[str, Scheme]:
    """A scheme for each site, drawn so that every plan prefers another width."""
    random = np.random.default_rng(seed)
    centre, plan = random.uniform(0.15, 0.85), {}
    for site, decisions in choices.items():
        # Half precision and caches beside it have no loss worth ranking.
        ordered = sorted((d for d in decisions if d.scheme.name != "f16"), key=lambda d: -d.uses["kl"])
        place = int(np.clip(random.normal(centre, 0.3), 0, 0.999) * len(ordered))
        plan[site] = ordered[place].scheme
    return plan


def rank_correlation(pairs: list[dict[str, Any]]) -> float:
    """Spearman's, of predicted and measured divergences."""
    from scipy.stats import spearmanr

    return float(spearmanr([p["predicted"] for p in pairs], [p["kl"] for p in pairs]).statistic)


def knapsack(tiles: int) -> dict[str, float]:
    """Time and gap of a synthetic problem with as many tiles as a 70B model has, 9 choices each."""
    random = np.random.default_rng(0)
    bits = np.array([2.5, 3.25, 3.5, 4.25, 4.5, 5.25, 6.25, 8.25, 16.0])
    loss = random.lognormal(0, 1.5, (tiles, 1)) * 4.0**-bits * random.lognormal(0, 0.2, (tiles, len(bits)))
    stored = np.broadcast_to(bits * 64 * 8192 / 8, loss.shape)
    problem = Problem(
        (Block(tuple(range(tiles)), np.stack([loss, stored])[:, :, None], np.zeros((2, tiles, len(bits)))),),
        np.zeros(2),
    )
    began = time.perf_counter()
    found = solve(problem, 0, {1: 4.1 * tiles * 64 * 8192 / 8}, "greedy")
    seconds = time.perf_counter() - began
    assert not isinstance(found, Infeasible)
    return {"tiles": tiles, "seconds": seconds, "gap": 1 - found.bound / float(found.vertex.uses[0])}


def windows_of(profile: Profile, model: Any, text: Path, count: int) -> Ids:
    """``count`` windows of LENGTH tokens, evenly spaced over the whole text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.tokenizer_json.decode())
    tokens = np.array(tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids, np.int64)
    windows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
    chosen: Ids = windows[np.linspace(0, len(windows) - 1, count).astype(int)]
    return chosen


def main(
    folder: Annotated[Path, typer.Argument(metavar="PROFILE", help="Folder made by `bitwright profile`.")],
    text: Annotated[Path, typer.Option(help="Text to measure on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures.")],
    budgets: Annotated[str, typer.Option(help="Bytes of the weights' file, in MB, with commas.")] = BUDGETS,
    windows: Annotated[int, typer.Option(help="Windows of the text.")] = 8,
    uniforms: Annotated[
        int, typer.Option(help="Uniform plans of each budget: those of least predicted divergence.")
    ] = 3,
    plans: Annotated[int, typer.Option(help="Random plans.")] = 20,
    correct: Annotated[int, typer.Option(help="Rounds of correction of each joint plan.")] = 0,
    tiles: Annotated[int, typer.Option(help="Of the synthetic knapsack.")] = 1_000_000,
) -> None:
    """Measure, and print a table."""
    from bitwright import pipeline

    output.mkdir(parents=True, exist_ok=True)
    profile = Profile.read(folder)
    key = {"profile": profile.digest, "text": text.name, "windows": windows}
    figures = Figures.open(output / "allocation.json", key)
    figures.once("knapsack", lambda: knapsack(tiles))
    choices = site_choices(profile, Budgets(max_bytes=1))
    model = pipeline.load_model(profile.header.model, lambda _: None)
    measurer = Measurer(profile, lambda _: None, model)
    simulation = measurer.simulation(windows_of(profile, model, text, windows), LENGTH // 2)
    everywhere = uniform_plans(profile, choices)
    sizes = [weights_file_bytes(profile.header, plan) for plan in everywhere]

    def measure(name: str, plan: Mapping[str, Scheme], entry: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = figures.once(name, lambda: {**entry, "kl": simulation.divergence(plan)})
        return found

    for megabytes in [int(part) for part in budgets.split(",")]:
        limit = megabytes * 10**6
        bounds = Budgets(max_bytes=limit)
        joint = allocate(profile, bounds, Settings())
        entry = {"bytes": joint.bytes, "predicted": joint.predicted["kl"], "gap": joint.gap}
        measure(f"{megabytes} MB joint", joint.plan.schemes, entry)
        fitting = [
            (predicted(choices, plan), size, plan)
            for plan, size in zip(everywhere, sizes, strict=True)
            if size <= limit
        ]
        for loss, size, plan in sorted(fitting, key=lambda found: found[:2])[:uniforms]:
            linear = plan[next(s.name for s in profile.header.sites if s.kind == "linear")]
            name = f"{linear}, table {plan['table']}" if "table" in plan else str(linear)
            measure(f"{megabytes} MB uniform {name}", plan, {"bytes": size, "predicted": loss})
    draws = [random_plan(choices, seed) for seed in range(plans)]
    pairs = [measure(f"random plan {i}", p, {"predicted": predicted(choices, p)}) for i, p in enumerate(draws)]
    if len(pairs) > 2:
        figures.entries["rank correlation"] = rank_correlation(pairs)
    for megabytes in [int(part) for part in budgets.split(",")] if correct else []:
        bounds = Budgets(max_bytes=megabytes * 10**6)

        def corrected(bounds: Budgets = bounds) -> dict[str, Any]:
            found = allocate_corrected(profile, bounds, Settings(), correct, lambda _: None, measurer)
            return {"bytes": found.bytes, **found.measured, "kl_of_text": simulation.divergence(found.plan.schemes)}

        figures.once(f"{megabytes} MB corrected", corrected)
    for name, entry in figures.entries.items():
        typer.echo(f"{name}: {json.dumps(entry)}")


if __name__ == "__main__":
    typer.run(main)
