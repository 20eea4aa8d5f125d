"""Fixtures of the toy model for the tests of the runtime."""

from tests.runtime.toy_fixtures import artifact_path, executable, parts, session, session_of_two, toy

__all__ = ["artifact_path", "executable", "parts", "session", "session_of_two", "toy"]
