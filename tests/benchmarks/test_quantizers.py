"""The quantizers' table: rows are measured once, and say what they compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import quantizers
from benchmarks.quantizers import Row, Setting, known, rows_of
from bitwright.cli import main
from bitwright.options import make_options

FIGURES: dict[str, Any] = {
    "bytes": 76_400_000,
    "perplexity": 30.123,
    "kl": {"mean": 0.0567, "p99": 0.4},
    "top1": 0.8125,
    "compile_cpu_seconds": 61.2,
    "compile_peak_bytes": 2_100_000_000,
}


def test_a_method_is_a_quantizer_and_options() -> None:
    assert Row("auto+equalise+distill=300", "u3g32a8", "u4rowa8").options == [
        *("--quantizer", "auto", "--equalise", "--distill", "300"),
        *("--scheme", "u3g32a8", "--table", "u4rowa8"),
    ]


@pytest.mark.parametrize("name", ["widths", "bars", "ablation"])
def test_every_row_of_the_sets_is_something_to_compile(name: str) -> None:
    rows = rows_of(name)
    assert len(set(rows)) == len(rows) > 2
    for row in rows:
        parsed = compile_command().make_context("compile", ["model", "-o", "out", *row.options]).params
        options = make_options(**{name: parsed[name] for name in ("scheme", "table", "quantizer", "rotate")})
        assert str(options.scheme) == row.scheme
        assert set(row.method.split("+")[1:]) == set(flags(parsed))


def compile_command() -> Any:
    """The verb, which refuses options that it does not have."""
    return main.build().commands["compile"]


def flags(parsed: dict[str, Any]) -> Iterator[str]:
    """Names of the options that a method may add, as far as they are given."""
    for name in ("weigh_tokens", "equalise"):
        if parsed[name]:
            yield name.replace("_", "-")
    for name in ("rotate", "distill"):
        if parsed[name]:
            yield f"{name}={parsed[name]}"


def test_other_names_are_refused() -> None:
    assert rows_of("gptq:u4g32a8:f16") == (Row("gptq", "u4g32a8", "f16"),)
    with pytest.raises(SystemExit, match="'width' is not widths, bars"):
        rows_of("width")


def test_only_quantizers_that_calibrate_get_a_text() -> None:
    setting = Setting("model", Path("c.txt"), Path("t.txt"), 2, Path("out"))
    assert "--calibration" not in setting.compile(Row("rtn", "u4g32a8", "u8g32a8"), Path("a"))
    assert "--calibration" in setting.compile(Row("clip", "u4g32a8", "u8g32a8"), Path("a"))


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Row] = []

    def measure(_setting: Setting, row: Row) -> dict[str, Any]:
        compiled.append(row)
        return {**asdict(row), **FIGURES}

    monkeypatch.setattr(quantizers, "measured", measure)
    app = quantizers.typer.Typer()
    app.command()(quantizers.main)
    arguments = ["model", "--calibration", "c", "--text", "t", "-o", str(tmp_path), "--set"]
    first = CliRunner().invoke(app, [*arguments, "rtn:u4g32a8:u8g32a8"])
    assert first.exit_code == 0 and compiled == [Row("rtn", "u4g32a8", "u8g32a8")]
    assert list(known(tmp_path / "rows.json")) == compiled
    second = CliRunner().invoke(app, [*arguments, "rtn:u4g32a8:u8g32a8"])
    assert len(compiled) == 1
    CliRunner().invoke(app, [*arguments, "rtn:u4g32a8:u8g32a8,clip:u4g32a8:u8g32a8"])
    assert [row.method for row in compiled] == ["rtn", "clip"]
    line = "| rtn | `u4g32a8` | `u8g32a8` | 76.4 | 30.12 | 0.0567 | 0.400 | 81.2 % | 61 | 2100 |"
    assert line in second.stdout.splitlines()
