"""The text side of an artifact: its tokenizer, its chat template, and what its generation config says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.runtime.artifact import Artifact
from bitwright.runtime.artifact.files import CHAT_TEMPLATE, GENERATION, TOKENIZER
from bitwright.runtime.chat import ChatTemplate, Message
from bitwright.runtime.sampling import SamplingOptions
from bitwright.runtime.token_ids import shared_length
from bitwright.runtime.tokenizer import Tokenizer

_OPENING_ROLES = ("system", "developer")


class ModelText:
    """Read from the artifact's files when they are first needed."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises UnsupportedError: the artifact was compiled without one."""
        path = self._member(TOKENIZER, "pass token ids, or compile from a source that has a tokenizer")
        return Tokenizer(path)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Raises UnsupportedError: the model has none."""
        path = self._member(CHAT_TEMPLATE, "pass a plain prompt: this is no chat model")
        config, tokens = self.generation_config, {}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            number = config.get(f"{name}_id")
            first = number[0] if isinstance(number, list) and number else number
            token = self.tokenizer.token(first) if isinstance(first, int) else None
            tokens[name] = token or ""
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError("the chat template is not UTF-8", where=f"{path}, byte {error.start}") from error
        return ChatTemplate(source, where=str(path), tokens=tokens)

    @property
    def has_chat_template(self) -> bool:
        return CHAT_TEMPLATE in self._artifact.manifest.files

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """``generation_config.json``, empty where the artifact has none."""
        if GENERATION not in self._artifact.manifest.files:
            return {}
        path = self._artifact.folder / GENERATION
        try:
            config = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError("the generation config is not JSON", where=str(path), limit=str(error)) from error
        if not isinstance(config, dict):
            raise InputError("the generation config is not a JSON object", where=str(path))
        return config

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer (``eos_token_id``).

        Raises:
            InputError: the generation config holds something else there.
        """
        value = self.generation_config.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in ids):
            raise InputError(
                f"eos_token_id is {value!r}",
                where=str(self._artifact.folder / GENERATION),
                limit="a token id, a list of them, or null",
                remedy="correct the model's generation_config.json and compile it again",
            )
        return frozenset(ids)

    def sampling(self, **given: Any) -> SamplingOptions:
        """The options given (not None), else what the generation config recommends, else greedy.

        Raises:
            InputError: the generation config recommends something impossible.
            UsageError: an option is outside its range.
        """
        try:
            SamplingOptions.recommended(self.generation_config)
        except UsageError as error:
            raise InputError(
                f"the model recommends an impossible {error.where}: {error.what}",
                where=str(self._artifact.folder / GENERATION),
                limit=error.limit,
                remedy="correct the model's generation_config.json and compile it again",
            ) from error
        return SamplingOptions.recommended(self.generation_config, **given)

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of ``messages`` as the chat template renders them, ending where the answer begins."""
        text = self.chat_template.render(messages)
        return self.tokenizer.encode(text, special=False)

    def opening_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens stand before the first user's text: system messages and what the template adds."""
        first = next((i for i, message in enumerate(messages) if message["role"] not in _OPENING_ROLES), None)
        if first is None:
            return 0
        # Two texts that have no beginning in common show where a text begins.
        one, other = (
            self.encode_messages([*messages[:first], {**messages[first], "content": text}]) for text in ("0", "a")
        )
        return shared_length(one, other)

    def _member(self, name: str, remedy: str) -> Path:
        if name not in self._artifact.manifest.files:
            raise UnsupportedError(f"the artifact has no {name}", where=str(self._artifact.folder), remedy=remedy)
        return self._artifact.folder / name
