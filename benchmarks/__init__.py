"""Measurements against other engines. Run as modules from the repository root; not part of the package."""
