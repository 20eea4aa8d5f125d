"""llama.cpp's types on the windows of `bitwright eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import llama_quality
from benchmarks.llama_quality import encoded, parser, table
from tests.compiling.test_calibration import word_tokenizer

FIGURES: dict[str, Any] = {"perplexity": 30.5, "kl": {"mean": 0.25, "p99": 1.5}, "top1": 0.75}


def test_a_row_of_the_table() -> None:
    row = {"type": "q4_0", "cache": "f16", "bytes": 91_900_000, "context": 512, **FIGURES}
    assert list(table([row]))[2:] == ["| q4_0 | f16 | 91.9 | 30.50 | 0.2500 | 1.500 | 75.0 % |"]


@pytest.mark.parametrize("option", [["--types", "q9_9"], ["--caches", "q1_0"]])
def test_what_llama_cpp_does_not_have_is_refused(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["llama_quality", "folder", "--text", "file", *option])
    with pytest.raises(SystemExit):
        llama_quality.main()
    assert f"not known: {option[1]}" in capsys.readouterr().err


def test_defaults_compare_quantized_types_with_half_precision_caches() -> None:
    arguments = parser().parse_args(["folder", "--text", "file"])
    assert "float" not in arguments.types and arguments.caches == ["f16"]


def test_a_text_becomes_tokens_without_special_ones(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("w1 w2 w1")
    ids = encoded(word_tokenizer(), tmp_path / "text")
    assert ids == [1, 2, 1]


def test_without_a_tokenizer_there_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no tokenizer\.json"):
        encoded(None, tmp_path)
