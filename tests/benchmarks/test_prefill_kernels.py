"""The benchmark of prefill kernels prints the fraction of the peak that it measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import prefill_kernels


def test_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--schemes", "u4g32a8", "--shapes", "64x64", "--tokens", "1,3", "--seconds", "0.01", "--json"]
    assert prefill_kernels.main(options) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["scheme"], row["tokens"]) for row in rows] == [("u4g32a8", 1), ("u4g32a8", 3)]
    for row in rows:
        assert row["fraction"] == pytest.approx(row["macs_per_second"] / row["peak_macs_per_second"])


def test_float_weights_have_no_peak(capsys: pytest.CaptureFixture[str]) -> None:
    assert prefill_kernels.main(["--schemes", "f16"]) == 2
    assert "f16 makes no byte dot products" in capsys.readouterr().err


def test_a_malformed_scheme_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert prefill_kernels.main(["--schemes", "u9g32a8"]) == 2
    assert "u9g32" in capsys.readouterr().err
