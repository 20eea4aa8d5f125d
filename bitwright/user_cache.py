"""Where bitwright keeps what it can make again for this user."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(part: str) -> Path:
    """``$XDG_CACHE_HOME/bitwright/PART``, below ``~/.cache`` by default; not made."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "bitwright" / part
