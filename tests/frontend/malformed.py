"""What a file that is broken, or that lies, must end in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import BitwrightError
from bitwright.frontend import load


def expect(error: type[BitwrightError], path: Path, what: str, limit: str = "", **options: Any) -> BitwrightError:
    """``load(path)`` ends in ``error`` whose text holds ``what`` and ``limit`` and says where."""
    with pytest.raises(error) as caught:
        load(path, **options)
    assert what in caught.value.what
    assert limit in (caught.value.limit or "")
    assert caught.value.where
    return caught.value
