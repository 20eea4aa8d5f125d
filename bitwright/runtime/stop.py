"""Stop strings: end an answer where one of some strings begins, even when it spans several pieces of the stream."""

from __future__ import annotations

from collections.abc import Sequence

from bitwright.errors import UsageError


class StopStrings:
    """Cuts a stream of text at the first occurrence of any stop string.

    Text that may be the beginning of a stop string is withheld until it is clear that it is not.

    Raises:
        UsageError: an empty stop string (it would stop everything), one that is no Unicode text (it would stop
            nothing), or something that is no string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            stops = (stops,)
        for stop in stops:
            if not isinstance(stop, str) or not stop or any("\ud800" <= letter <= "\udfff" for letter in stop):
                raise UsageError(
                    f"{stop!r} is no stop string",
                    where="stop",
                    limit="Unicode texts that are not empty",
                    remedy="leave it out",
                )
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None
        """The stop string that was found."""

    def push(self, piece: str) -> str:
        """Take the next piece of text; return what can be shown. After a hit nothing more comes."""
        if self.hit is not None:
            return ""
        text = self._held + piece
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.hit = min(found, key=lambda item: (item[0], -len(item[1])))
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text still withheld when the stream ends without a hit."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
