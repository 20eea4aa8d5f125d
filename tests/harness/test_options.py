"""What needs no lm_eval: generation options, prefilled messages, and the declaration of the entry point."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import InputError, UnsupportedError
from bitwright.harness import main
from bitwright.harness.continue_message import continued
from bitwright.harness.generation_options import generation_options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {"max_tokens": 9, "stop": (), **GREEDY}),
        ({"until": "\n", "max_gen_toks": 5}, {"max_tokens": 5, "stop": ("\n",), **GREEDY}),
        (
            {"until": ["a", "", "b"], "do_sample": False, "temperature": 0.7, "top_k": 4},
            {"max_tokens": 9, "stop": ("a", "b"), **GREEDY},
        ),
        ({"do_sample": True, "top_p": 0.9}, {"max_tokens": 9, "stop": (), "temperature": 1.0, "top_p": 0.9}),
        ({"temperature": 0.5, "seed": 3}, {"max_tokens": 9, "stop": (), "temperature": 0.5, "seed": 3}),
        ({"temperature": 0.0, "until": None, "max_tokens": None}, {"max_tokens": 9, "stop": (), **GREEDY}),
    ],
)
def test_options_become_those_of_generate(given: dict[str, Any], options: dict[str, Any]) -> None:
    before = dict(given)
    assert generation_options(given, 9) == options
    assert given == before


def test_an_option_that_is_not_understood_is_named() -> None:
    with pytest.raises(UnsupportedError, match="the generation option 'num_beams' is not understood") as error:
        generation_options({"num_beams": 4}, 9)
    assert error.value.remedy


def test_a_prefilled_message_is_left_open() -> None:
    assert continued("<|user|>Yes<end><|assistant|> Yes, <end>", " Yes, ") == "<|user|>Yes<end><|assistant|> Yes,"
    with pytest.raises(InputError, match="does not show the last message as it is"):
        continued("<|user|>HI<end>", "hi")


def test_the_entry_point_names_a_class_that_exists() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lm_eval.models"] == {"bitwright": "bitwright.harness.model:BitwrightLM"}
    found = importlib.util.find_spec("bitwright.harness.model")
    assert found is not None and found.origin is not None
    assert "class BitwrightLM(" in Path(found.origin).read_text()


def test_without_lm_eval_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("lm_eval", "lm_eval.api.registry"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 5
    assert "remedy: pip install 'bitwright[lm-eval]'" in capsys.readouterr().err
