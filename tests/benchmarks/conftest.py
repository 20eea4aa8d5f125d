"""The toy artifact of the runtime's tests, to be measured."""

from __future__ import annotations

from tests.runtime.toy_fixtures import artifact_path, executable, parts, toy

__all__ = ["artifact_path", "executable", "parts", "toy"]
