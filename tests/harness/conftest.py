"""The toy artifact, and an lm_eval that reaches for no network and no home folder."""

from __future__ import annotations

import os
import tempfile

# datasets reads these when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="bitwright-datasets-")


from tests.runtime.toy_fixtures import artifact_path, executable, parts, toy

__all__ = ["artifact_path", "executable", "parts", "toy"]
