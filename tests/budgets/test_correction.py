"""Plans are measured as the interpreter computes them, and sites' parts sum to the divergence of a whole plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bitwright.allocation import Budgets
from bitwright.budgets.allocating import Settings, allocate
from bitwright.budgets.contributions import contributions
from bitwright.budgets.correction import LEAST, MOST, Measurer, allocate_corrected, corrected
from bitwright.budgets.cross_check import cross_check
from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.budgets.simulation import as_read
from bitwright.frontend.interpreter import Interpreter
from bitwright.frontend.model import ImportedModel
from bitwright.plan import uniform_plan
from bitwright.runs import Scheme, parse_weights
from bitwright.scheme import CacheScheme, LinearScheme, WeightScheme
from bitwright.sensitivity import Profile
from tests.canonical_model import Shape, decoder

SHAPE = Shape(layers=2, width=128, heads=4, kv_heads=2, head_dim=32, hidden=192, vocab=320)


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory) -> Measurer:
    model = decoder(SHAPE)
    table = model.graph.graph.initializers["table"]
    assert table.const_value is not None
    table.const_value = ir.tensor(table.const_value.numpy() / 8, name="table")
    folder: Path = tmp_path_factory.mktemp("profile")
    schemes = ("c2g32", "u3g32", "u4g32", "c4g32", "u8g32", "k4g32", "v4g32")
    options = ProfileOptions(schemes=schemes, quantizer="rtn", tokens=512, codes=folder / "codes")
    return Measurer(profile_model(model, folder, options), lambda _: None, model)


def uniform(profile: Profile, name: str, cache: str) -> dict[str, Scheme]:
    keys, values = CacheScheme.parse(f"k{cache}"), CacheScheme.parse(f"v{cache}")
    scheme = LinearScheme.parse(name)
    sites = profile.header.sites
    plan = uniform_plan(sites, scheme, table=None, cache_bits=16, keys=keys, values=values, model="", target="")
    return dict(plan.schemes)


def test_a_plan_is_what_dequantized_weights_compute(measurer: Measurer) -> None:
    simulation = measurer.held_out
    plan = uniform(measurer.profile, "u3g32a16", "32")
    plan["layer.0.q"] = parse_weights("u3g32a16:64+c4g32a16:64")
    assert isinstance(measurer.model, ImportedModel)
    plain = Interpreter(measurer.model.graph)

    def logs(window: np.ndarray) -> np.ndarray:
        z = plain.logits(window).astype(np.float64)
        return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)))

    reference = [logs(window) for window in simulation.windows]
    for site in simulation.sites:
        if site.weight:
            matrix = simulation.dequantized(site, WeightScheme.parse("u3g32")).copy()
            if site.name == "layer.0.q":
                matrix[64:] = simulation.dequantized(site, WeightScheme.parse("c4g32"))[64:]
            stored = site.weight.removesuffix(".T")
            import torch

            plain.weights[stored] = torch.from_numpy(matrix.T.copy() if site.weight.endswith(".T") else matrix)
    pairs = zip(reference, simulation.windows, strict=True)
    found = np.mean([(np.exp(p) * (p - logs(w))).sum(1).mean() for p, w in pairs])
    assert simulation.divergence(plan) == pytest.approx(found, rel=1e-3)
    assert simulation.divergence({}) == pytest.approx(0, abs=1e-7)


def test_inputs_are_read_as_each_run_says(measurer: Measurer) -> None:
    import torch

    simulation = measurer.held_out
    plan: dict[str, Scheme] = {"layer.0.mlp.0": parse_weights("u8g32a8:128+u8g32a16:64")}
    product = simulation.points.products[next(s.weight for s in simulation.sites if s.name == "layer.0.mlp.0")]
    seen: dict[str, torch.Tensor] = {}

    def see(name: str, value: torch.Tensor) -> None:
        seen[name] = value

    feeds = simulation.interpreter.feeds(simulation.windows[0])
    with simulation.interpreter.observe((product.activation,), see):
        simulation.interpreter.run(feeds, (product.output,))
        exact = seen[product.activation]
        with simulation.changed(plan), simulation.interpreter.observe((product.output,), see):
            simulation.interpreter.run(feeds, (product.output,))
    site = next(s for s in simulation.sites if s.name == "layer.0.mlp.0")
    matrix = torch.from_numpy(simulation.dequantized(site, WeightScheme.parse("u8g32"))).T
    wanted = torch.cat([as_read(exact, (8, 32)) @ matrix[:, :128], exact @ matrix[:, 128:]], -1)
    assert torch.allclose(seen[product.output], wanted, atol=1e-5)


def test_the_parts_of_the_sites_sum_to_the_divergence(measurer: Measurer) -> None:
    simulation = measurer.fitted
    plan = uniform(measurer.profile, "u8g32a8", "4g32")
    parts = contributions(simulation, plan)
    assert set(parts) == {site.name for site in simulation.sites}
    assert sum(parts.values()) == pytest.approx(simulation.divergence(plan), rel=0.1)


def test_corrections_stay_within_their_bounds(measurer: Measurer) -> None:
    plan = allocate(measurer.profile, Budgets(avg_bits=5.5))
    sites = [decision.site for decision in plan.decisions]
    losses = {decision.site: decision.uses["kl"] for decision in plan.decisions}
    factors = corrected(dict.fromkeys(sites, 1.0), plan, {site: 2 * loss for site, loss in losses.items()})
    assert all(factors[site] == pytest.approx(2 if losses[site] else 1) for site in sites)
    wild = {site: (100 if i % 2 else -1) * losses[site] for i, site in enumerate(sites)}
    factors = corrected(dict.fromkeys(sites, 1.0), plan, wild)
    assert {factors[site] for site in sites if losses[site]} <= {LEAST, MOST}


def test_a_corrected_plan_is_never_worse_on_the_held_out_text_and_says_what_was_measured(measurer: Measurer) -> None:
    budgets = Budgets(avg_bits=4.5)
    found = allocate_corrected(measurer.profile, budgets, Settings(), 2, lambda _: None, measurer)
    assert found.measured["kl"] <= found.measured["kl_before"]
    assert found.plan.notes["measured"]["kl"] == found.measured["kl"]
    assert measurer.held_out.divergence(found.plan.schemes) == found.measured["kl"]
    assert found.bytes <= 4.5 * sum(site.parameters for site in measurer.profile.header.sites) / 8


def test_scores_rank_sites_as_their_own_divergences_do(measurer: Measurer, tmp_path: Path) -> None:
    found = cross_check(measurer.profile, 24, measurer)
    assert len(found.checks) == 24
    assert found.rank_correlation > 0.9
    assert 0.5 < found.ratio < 2
    found.write(tmp_path / "check.json")
    assert json.loads((tmp_path / "check.json").read_text())["checks"][0]["site"] == found.checks[0].site
