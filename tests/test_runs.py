"""Mixed schemes print, parse and say what they fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.errors import UsageError
from bitwright.runs import MixedScheme, Run, first_rows, parse_weights, runs_of, scheme_of
from bitwright.scheme import LinearScheme

from .test_scheme import linear_schemes


@given(st.lists(st.builds(Run, linear_schemes, st.integers(1, 10**6)), min_size=2, max_size=9))
def test_names_parse_back(runs: list[Run]) -> None:
    scheme = MixedScheme(tuple(runs))
    assert parse_weights(scheme.name) == scheme and parse_weights(scheme.name).name == scheme.name
    assert scheme_of(runs_of(scheme, scheme.rows)) == scheme
    assert first_rows(scheme.runs)[-1] + runs[-1].rows == scheme.rows == sum(run.rows for run in runs)


def test_a_whole_matrix_is_one_run() -> None:
    four = LinearScheme.parse("u4g32a8")
    assert runs_of(four, 576) == (Run(four, 576),) and scheme_of((Run(four, 576),)) == four
    assert parse_weights("u4g32a8") == four


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u4g32a8:64", "fewer than two runs"),
        ("u4g32a8:64+u3g32a8", "'u3g32a8' is not a run of rows"),
        ("u4g32a8:64+", "'' is not a run of rows"),
        ("u4g32a8:64+u3g32a8:-1", "is not a run of rows"),
        ("u4g32a8:0+u3g32a8:64", "a run of 0 rows"),
        ("u4g32a8:64+u7g32a8:64", "'u7g32' is not a scheme"),
        ("u4g32a8:64+k16:64", "is not a scheme"),
    ],
)
def test_nonsense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        parse_weights(text)


def test_runs_must_add_up_and_be_whole_tiles() -> None:
    def why(text: str, outputs: int) -> str | None:
        return MixedScheme.parse(text).why_not(outputs)

    assert why("u4g32a8:384+u3g32a8:192", 576) is None
    assert why("u4g32a8:64+u3g32a8:37", 101) is None  # the last run takes what is left
    assert why("u4g32a8:384+u3g32a8:192", 577) == "the runs have 576 rows, the matrix has 577"
    expected = "u4g32a8:37 is no multiple of 64 rows, as every run but the last must be"
    assert why("u4g32a8:37+u3g32a8:64", 101) == expected
