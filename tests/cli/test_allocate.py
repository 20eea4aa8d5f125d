"""``bitwright allocate`` and the budgets of ``bitwright compile``, as users type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitwright.budgets.profile_options import ProfileOptions
from bitwright.budgets.profiling import profile_model
from bitwright.plan import Plan
from tests.canonical_model import Shape, decoder
from tests.cli.conftest import Command


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    model = decoder(Shape(layers=1, width=64, heads=2, kv_heads=1, head_dim=32, hidden=96, vocab=128))
    profile_model(model, folder, ProfileOptions(schemes=("u3g32", "u8g32", "k4g32"), quantizer="rtn", tokens=256))
    return folder


def test_json_has_the_keys_that_scripts_rely_on_and_nothing_else_is_printed(
    command: Command, profiled: Path, tmp_path: Path
) -> None:
    done = command("allocate", profiled, "--max-bytes", "120kB", "--context", "16", "-o", tmp_path / "p.json", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"bytes", "kv_bytes_per_token", "predicted", "gap", "binding"} <= set(document)
    assert document["bytes"] + 16 * document["kv_bytes_per_token"] <= 120_000
    assert set(document["predicted"]) == {"kl"}
    assert Plan.read(tmp_path / "p.json").notes["budgets"]["max_bytes"] == 120_000


def test_people_get_a_table(command: Command, profiled: Path, tmp_path: Path) -> None:
    done = command("allocate", profiled, "--avg-bits", "9", "-o", tmp_path / "plan.json")
    assert done.returncode == 0
    for word in (b"weights", b"predicted kl", b"gap", b"binding"):
        assert word in done.stdout


def test_an_infeasible_budget_ends_with_4_and_leaves_no_plan(command: Command, profiled: Path, tmp_path: Path) -> None:
    done = command("allocate", profiled, "--max-bytes", "1kB", "-o", tmp_path / "plan.json")
    assert done.returncode == 4
    assert b"no plan meets the budgets" in done.stderr and b"binding: bytes" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-bytes", "many"), b"'many' is not a size"),
        ((), b"no budget was given"),
        (("--max-decode-ms", "3"), b"no latencies are known"),
        (("--max-bytes", "1MB", "--grain", "row"), b"'row' is not a grain"),
        (("--max-bytes", "1MB", "--max-runs", "0"), b"0 runs of a matrix"),
        (("--max-bytes", "1MB", "--minimise", "fun"), b"'fun' cannot be minimised"),
    ],
)
def test_what_makes_no_sense_ends_with_2(
    command: Command, profiled: Path, tmp_path: Path, arguments: tuple[str, ...], message: bytes
) -> None:
    done = command("allocate", profiled, *arguments, "-o", tmp_path / "plan.json")
    assert done.returncode == 2
    assert message in done.stderr


def test_a_folder_without_a_profile_ends_with_3(command: Command, tmp_path: Path) -> None:
    done = command("allocate", tmp_path, "--max-bytes", "1MB", "-o", tmp_path / "plan.json")
    assert done.returncode == 3
    assert b"there is no profile here" in done.stderr


def test_compile_refuses_budgets_beside_schemes(command: Command, tmp_path: Path) -> None:
    done = command("compile", "smollm2-135m", "--max-bytes", "60MB", "--scheme", "u4g32a8", "-o", tmp_path / "a")
    assert done.returncode == 2
    assert b"budgets and schemes were given" in done.stderr
