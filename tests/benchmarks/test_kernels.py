"""The kernel benchmark: what a row holds, and what it refuses."""

from __future__ import annotations

import json

import pytest

from benchmarks.kernels import MIB, level_bytes, main

SMALL = ["decode", "--mib", "1", "--rounds", "3", "--target", "generic"]


def test_rows_hold_every_combination_with_bytes_times_and_fractions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--schemes", "u4g32a8,u3g64za8", "--shapes", "96x256", "--levels", "l3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["target"] == document["isa"] == "generic"
    rows = document["rows"]
    assert [(row["scheme"], row["threads"]) for row in rows] == [
        (scheme, threads) for scheme in ("u4g32a8", "u3g64za8") for threads in (1, 2)
    ]
    # 96 rows are whole tiles. A row: codes, half-precision scales, byte zero points.
    assert [row["bytes"] for row in rows[::2]] == [96 * (128 + 16), 96 * (96 + 8 + 4)]
    for row in rows:
        assert row["copies"] == MIB // row["bytes"]
        assert row["gb_per_second"] == pytest.approx(row["bytes"] / row["microseconds"] / 1e3)
        assert 0 < row["read_fraction"] < 20


def test_a_table_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--schemes", "f16", "--shapes", "64x64", "--threads", "1", "--levels", "dram"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "64x64" in line]
    assert line.split()[:5] == ["dram", "64x64", "f16", "1", "0.01"]


def test_a_matrix_that_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--schemes", "u8g32a8", "--shapes", "1024x1024", "--levels", "l3"]) == 2
    assert "1048576 bytes for all copies at level l3" in capsys.readouterr().err


def test_unknown_schemes_end_with_the_usage_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--schemes", "u7g32a8"]) == 2
    assert "u7g32" in capsys.readouterr().err


def test_copies_outgrow_the_caches_or_fill_half_of_the_last() -> None:
    assert level_bytes({"L1d": 32 << 10, "L3": 32 * MIB}) == {"dram": 256 * MIB, "l3": 16 * MIB}
    assert level_bytes({"L2": 2 * MIB}) == {"dram": 128 * MIB, "l3": MIB}
