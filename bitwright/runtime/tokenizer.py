"""Text to token ids and back, through the ``tokenizers`` library."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitwright.errors import InputError, UsageError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_REPLACEMENT = "\ufffd"


class Tokenizer:
    """The tokenizer of an artifact (``tokenizer.json``).

    Raises:
        InputError: the file cannot be read or is no tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Library

        try:
            text = path.read_bytes().decode("utf-8")
            self._tokenizer: Any = Library.from_str(text)
        except OSError as error:
            raise InputError(f"cannot read the tokenizer: {error.strerror}", where=str(path)) from error
        except Exception as error:  # the library raises plain Exception
            raise InputError(
                "the tokenizer cannot be read",
                where=str(path),
                limit=str(error).splitlines()[0],
                remedy="it must be the tokenizer.json of the `tokenizers` library",
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = frozenset(
            number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._bytes = self._byte_tokens(text)

    def _byte_tokens(self, text: str) -> frozenset[int]:
        if '"ByteFallback"' not in json.dumps(json.loads(text).get("decoder")):
            return frozenset()
        return frozenset(
            number for token, number in self._tokenizer.get_vocab().items() if _BYTE_TOKEN.fullmatch(token)
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``.

        Args:
            special: let the tokenizer add what it adds around a text (e.g. BOS). Chat templates write that themselves.

        Raises:
            UsageError: the text cannot be encoded as UTF-8 (it holds lone surrogates).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                "the text is not valid Unicode", where=f"character {error.start}", remedy="pass text in UTF-8"
            ) from error
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token(self, number: int) -> str | None:
        """The text of one vocabulary entry, e.g. ``<|im_end|>``."""
        found = self._tokenizer.id_to_token(number)
        return None if found is None else str(found)

    def stream(self) -> Detokenizer:
        """A new incremental decoder."""
        return Detokenizer(self)


class Detokenizer:
    """Decodes one token after the other into pieces whose concatenation is ``decode`` of all the tokens.

    A piece never ends inside a UTF-8 character: text that still ends in U+FFFD is withheld until the next token or
    the end. Decoding is local apart from the beginning of a text (where some decoders drop a space), so each step
    decodes the tokens of the last shown piece together with the new ones and shows the difference. Tokens that stand
    for single bytes are an
    exception: ``tokenizers`` judges a whole run of them at once, so a run is withheld until it ends.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._shown = ""
        self._pending: list[int] = []

    def push(self, number: int) -> str:
        """Take the next token id; return the text that is certain now (possibly empty)."""
        if number in self._tokenizer._special:
            return ""
        self._pending.append(number)
        if number in self._tokenizer._bytes:
            return ""
        text = self._tokenizer.decode([*self._context, *self._pending])
        return "" if text.endswith(_REPLACEMENT) else self._show(text)

    def finish(self) -> str:
        """The text still withheld at the end of the stream, with U+FFFD for incomplete characters."""
        if not self._pending:
            return ""
        return self._show(self._tokenizer.decode([*self._context, *self._pending]))

    def _show(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._context, self._pending = self._pending, []
        self._shown = self._tokenizer.decode(self._context)
        return piece
