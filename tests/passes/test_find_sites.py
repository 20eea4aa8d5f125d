"""Sites are found by structure: what feeds an attention, what reads it, what comes after."""

from __future__ import annotations

from typing import Any

from tests.passes.ir import named


def _names(program: Any, kind: str) -> list[str]:
    return [site.name for site in program.sites if site.kind == kind]


def test_sites_are_named_by_their_place_around_the_attentions(prepare: Any) -> None:
    program = prepare(layers=2)
    layer = ["q", "k", "v", "o", "mlp.0", "mlp.1", "mlp.2"]
    assert _names(program, "linear") == [f"layer.{i}.{role}" for i in range(2) for role in layer]
    assert _names(program, "table") == ["table"]
    assert _names(program, "k_cache") == ["layer.0.k_cache", "layer.1.k_cache"]


def test_tensor_names_play_no_part(prepare: Any) -> None:
    """Parameters are renamed to nonsense: the sites stay the same."""
    from bitwright.frontend.relax.module import import_model
    from bitwright.passes.find_sites import FindSites
    from tests.canonical_model import Shape, decoder

    model = decoder(Shape())
    for i, value in enumerate(list(model.graph.graph.initializers.values())):
        value.name = f"nonsense_{i}"
    renamed = FindSites()(import_model(model, capacity=64))
    assert [s.name for s in renamed.sites] == [s.name for s in prepare().sites]


def test_a_tied_table_is_one_site(prepare: Any) -> None:
    (table,) = [site for site in prepare(tied=True).sites if site.kind == "table"]
    assert table.tied and table.shape == (101, 96)


def test_an_untied_head_is_a_site_of_its_own(prepare: Any) -> None:
    program = prepare(tied=False)
    table, head = (next(s for s in program.sites if s.name == name) for name in ("table", "head"))
    assert (table.tied, table.kind, head.kind, head.shape) == (False, "table", "linear", (101, 96))


def test_layers_that_read_one_activation_share_a_group(prepare: Any) -> None:
    groups = {site.name: site.group for site in prepare(layers=1).sites}
    assert groups["layer.0.q"] == groups["layer.0.k"] == groups["layer.0.v"] != ""
    assert groups["layer.0.mlp.0"] == groups["layer.0.mlp.1"] != groups["layer.0.q"]
    assert groups["layer.0.o"] == groups["layer.0.mlp.2"] == groups["table"] == ""


def test_every_entry_point_carries_the_names(prepare: Any) -> None:
    program = prepare(layers=1)
    for entry in ("prefill", "decode", "score"):
        assert [str(c.attrs["site"]) for c in named(program, "linear", entry)] == [
            *(f"layer.0.{role}" for role in ("q", "k", "v", "o", "mlp.0", "mlp.1", "mlp.2")),
            "table",
        ]


def test_biases_are_folded_and_recorded(prepare: Any) -> None:
    program = prepare(layers=1, bias=True)
    assert all(site.bias for site in program.sites if site.kind == "linear")
    assert program.events["fuse_bias"] == {"biases": 7 * 3}  # seven layers in each of three entry points


def test_multiply_adds_of_a_prompt_are_counted_by_what_reaches_the_logits(prepare: Any) -> None:
    program = prepare(layers=2)
    last_layer = [
        s for s in program.sites if s.name in {f"layer.1.{role}" for role in ("o", "mlp.0", "mlp.1", "mlp.2")}
    ]
    (table,) = [site for site in program.sites if site.kind == "table"]
    last = sum(site.parameters for site in (*last_layer, table))
    assert program.prefill_macs == (sum(site.parameters for site in program.sites) - last, last)
