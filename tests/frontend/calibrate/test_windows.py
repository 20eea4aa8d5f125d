"""Windows come from all over the text and never overlap."""

from __future__ import annotations

import numpy as np
import pytest

from bitwright.errors import InputError
from bitwright.frontend.calibrate.windows import spread


def test_windows_are_spread_over_the_text() -> None:
    windows = spread(np.arange(105), 10, 4)
    # Ten windows fit; the first, the last and two between them at equal distances.
    np.testing.assert_array_equal(windows[:, 0], [0, 30, 60, 90])
    np.testing.assert_array_equal(windows, windows[:, :1] + np.arange(10))


def test_a_short_text_is_cut_into_what_it_has() -> None:
    assert spread(np.arange(35), 16, 8).shape == (2, 16)
    assert spread(np.arange(20), 512, 8).shape == (1, 20)


def test_a_text_of_a_few_words_is_refused() -> None:
    with pytest.raises(InputError, match="the calibration text has 15 tokens"):
        spread(np.arange(15), 512, 8)
