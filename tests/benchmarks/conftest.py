"""The toy artifact of the runtime's tests, to be measured."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from toy_fixtures import artifact_path, executable, parts, toy

__all__ = ["artifact_path", "executable", "parts", "toy"]
