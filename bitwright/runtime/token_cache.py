"""The tokens that a session's cache holds: how many, which, what they share with a prompt, and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import UsageError
from bitwright.runtime.artifact import Manifest
from bitwright.runtime.cache_file import read_cache, write_cache
from bitwright.runtime.token_ids import shared_length

if TYPE_CHECKING:
    import numpy as np


class TokenCache:
    """Token ids by position, beside the tensors ``state`` that hold their keys and values."""

    def __init__(self, manifest: Manifest, state: Mapping[str, np.ndarray]) -> None:
        self._manifest, self._state = manifest, state
        self._tokens: list[int] = []
        # Caches that keep recent tokens do so in a ring: it holds those of one run, by its number. Where the cache ends
        # inside a run, it is that one: a call that begins inside a run ends in it, and going back does, or before it.
        self._run, self._held_run = manifest.interface.recent_run, 0

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def context(self) -> int:
        """Most tokens there is room for."""
        return self._manifest.interface.context

    def begin(self, count: int) -> None:
        """Note that keys and values of ``count`` more tokens are about to be written, which may be interrupted."""
        if self._run:
            self._held_run = (len(self) + count - 1) // self._run

    def append(self, tokens: Sequence[int]) -> None:
        """Note tokens whose keys and values were just written."""
        self._tokens.extend(tokens)

    def rewind(self, position: int) -> list[int]:
        """Forget the tokens from ``position`` on, and those before it that have to be read again; returns the latter.

        There are fewer than a run of them, and none unless later tokens took the places of their run's.

        Raises:
            UsageError: there are fewer tokens.
        """
        if not 0 <= position <= len(self):
            raise UsageError(f"cannot rewind to token {position}", limit=f"the cache holds {len(self)} tokens")
        first = position
        if self._run and position // self._run != self._held_run:
            first -= position % self._run
        again = self._tokens[first:position]
        del self._tokens[first:]
        return again

    def piece(self, count: int, chunk: int) -> int:
        """How many of ``count`` new tokens one call may append: ``chunk``, and what begins in a run ends in it."""
        inside = len(self) % self._run if self._run else 0
        return min(count, chunk, self._run - inside if inside else count)

    def shared(self, tokens: Sequence[int]) -> int:
        """How many tokens at the beginning of ``tokens`` are here."""
        return shared_length(self._tokens, tokens)

    def need_room(self, count: int) -> None:
        """Raises UsageError: ``count`` more tokens exceed the context."""
        need_context(len(self) + count, self.context)

    def save(self, path: Path) -> None:
        """Write tokens, keys and values to a file, whole or not at all.

        Raises:
            UsageError: the place cannot be written.
        """
        write_cache(path, self._manifest, self._tokens, self._state)

    def restore(self, path: Path) -> None:
        """Hold what ``save`` wrote.

        Raises:
            InputError: the file cannot be read, is damaged, or was saved by another artifact. All is as before.
        """
        self._tokens = read_cache(path, self._manifest, self._state)
        if self._run:
            # Inside a run the ring holds its tokens; at the beginning of one it may hold any.
            self._held_run = len(self) // self._run if len(self) % self._run else -1


def need_context(count: int, context: int) -> None:
    """Raises UsageError: a text of ``count`` tokens exceeds the context."""
    if count > context:
        raise UsageError(
            f"the text has {count} tokens",
            limit=f"the context of this artifact is {context} tokens",
            remedy="shorten it, or compile the model with a larger --context",
        )
