"""Run a compiled model: ``load`` an artifact, then ``generate`` text, or ask for logits.

>>> session = load("smollm2-u4")  # doctest: +SKIP
>>> print(session.generate("The capital of France is", max_tokens=20))  # doctest: +SKIP
>>> session.logits([1, 2, 3]).shape  # doctest: +SKIP
(3, 49152)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.runtime.artifact import Artifact, Manifest
from bitwright.runtime.artifact.files import CHAT_TEMPLATE, GENERATION, TOKENIZER
from bitwright.runtime.cache_file import read_cache, write_cache
from bitwright.runtime.chat import ChatTemplate, Message
from bitwright.runtime.generation import Completion, Generation, Limits
from bitwright.runtime.library import choose_threads
from bitwright.runtime.module import CompiledModule
from bitwright.runtime.sampling import Prediction, SamplingOptions
from bitwright.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MAX_TOKENS = 256


def load(path: str | Path, *, threads: int | None = None, copy_weights: bool | None = None) -> Session:
    """Verify the artifact at ``path`` and start a session on it.

    Args:
        threads: threads to compute with; by default one per physical core this process may use.
        copy_weights: copy the weights into huge pages, which are read faster, instead of mapping their file, which
            shares memory with other processes. By default where there are huge pages and room.

    Raises:
        InputError: no artifact, or one that is damaged. Digests are checked before any of its code is opened.
        UnsupportedError: compiled for another machine or another TVM.
        UsageError: more threads than processors.
    """
    count = choose_threads(threads)
    artifact = Artifact.open(path)
    artifact.verify()
    artifact.check_host()
    return Session(artifact, CompiledModule(artifact, count, copy_weights=copy_weights))


class Session:
    """A model in memory with one cache. Not for use by two Python threads at once.

    The cache holds the tokens that were fed so far (``position`` of them); it is allocated once and updated in place.
    """

    def __init__(self, artifact: Artifact, module: CompiledModule) -> None:
        self.artifact = artifact
        self.module = module
        self._cached: list[int] = []

    # What it is ------------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    @property
    def context(self) -> int:
        """Most tokens the cache holds."""
        return self.manifest.interface.context

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        return self.manifest.interface.vocab

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return len(self._cached)

    @property
    def threads(self) -> int:
        return self.module.threads

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer.

        Raises:
            UnsupportedError: it was compiled without one.
        """
        path = self._member(TOKENIZER, "pass token ids, or compile from a source that has a tokenizer")
        return Tokenizer(path)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The artifact's chat template.

        Raises:
            UnsupportedError: the model has none.
        """
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
        return CHAT_TEMPLATE in self.manifest.files

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """``generation_config.json``, empty where the artifact has none."""
        if GENERATION not in self.manifest.files:
            return {}
        path = self.artifact.folder / GENERATION
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
                where=str(self.artifact.folder / GENERATION),
                limit="a token id, a list of them, or null",
                remedy="correct the model's generation_config.json and compile it again",
            )
        return frozenset(ids)

    # Numbers ---------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all tokens: the next one stands at position 0."""
        self._cached.clear()

    def rewind(self, position: int) -> None:
        """Forget the tokens from ``position`` on.

        Raises:
            UsageError: the cache holds fewer tokens.
        """
        if not 0 <= position <= self.position:
            raise UsageError(f"cannot rewind to token {position}", limit=f"the cache holds {self.position} tokens")
        del self._cached[position:]

    def save_cache(self, path: str | Path) -> None:
        """Write the cache and the tokens it holds to a file, whole or not at all.

        Raises:
            UsageError: the place cannot be written.
        """
        write_cache(Path(path), self.manifest, self._cached, self.module.state)

    def restore_cache(self, path: str | Path) -> None:
        """Replace the cache by one that ``save_cache`` wrote: prompts that begin with its tokens reuse them.

        Raises:
            InputError: the file cannot be read, is damaged, or was saved by another artifact. The cache is as before.
        """
        self._cached = read_cache(Path(path), self.manifest, self.module.state)

    def prefill(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Append ``ids`` to the cache and return float32 [vocab], the logits behind the last of them.

        Raises:
            UsageError: no ids, an id outside the vocabulary, or more than the cache has room for.
        """
        self._need("decoder")
        tokens = self._ids(ids)
        self._need_room(len(tokens))
        chunk = self.manifest.interface.prefill_chunk
        logits: np.ndarray | None = None
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            logits = self.module.step("decode" if len(part) == 1 else "prefill", part, self.position)[0]
            self._cached.extend(part)
        assert logits is not None
        return logits

    def decode(self, number: int) -> np.ndarray:
        """Append one token and return float32 [vocab], the logits behind it (``prefill`` of one id)."""
        return self.prefill([number])

    def advance(self, number: int) -> Prediction:
        """Append one token and return what follows it: as ``decode``, but nothing is copied.

        The logits are the step's own memory: the next token overwrites them.

        Raises:
            UsageError: an id outside the vocabulary, or no room in the cache.
        """
        step = self.module.decode_step
        if step is None:
            return Prediction(self.decode(number))
        if not 0 <= number < self.vocab:
            self._ids([number])
        self._need_room(1)
        self.module.decode(number, self.position)
        self._cached.append(number)
        return Prediction(step.logits[0], int(step.best[0]))

    def logits(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 [len(ids), vocab]: the logits behind every token of ``ids``, which start an empty cache.

        The result takes ``4 * len(ids) * vocab`` bytes (0.4 GB for 2,048 tokens and a vocabulary of 49,152).

        Raises:
            UsageError: no ids, an id outside the vocabulary, or more ids than the context.
        """
        import numpy as np

        self._need("decoder")
        count = len(self._ids(ids))
        self.reset()
        self._need_room(count)
        result = np.empty((count, self.vocab), dtype=np.float32)
        start = 0
        for piece in self.rows(ids):
            result[start : start + len(piece)] = piece
            start += len(piece)
        return result

    def rows(self, ids: Sequence[int] | np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """``logits(ids)[first:]`` in pieces of at most one prefill chunk, float32 [rows, vocab] each.

        Tokens before ``first`` that the cache holds already are not computed again.

        Raises:
            UsageError: no ids, an id outside the vocabulary, more ids than the context, or ``first`` beyond them.
        """
        self._need("decoder")
        tokens = self._ids(ids)
        if not 0 <= first < len(tokens):
            raise UsageError(f"rows from {first} on", where="first", limit=f"0 to {len(tokens) - 1}")
        self.rewind(self._shared(tokens[:first]))
        self._need_room(len(tokens) - self.position)
        if self.position < first:
            self.prefill(tokens[self.position : first])
        chunk = self.manifest.interface.prefill_chunk
        for start in range(first, len(tokens), chunk):
            part = tokens[start : start + chunk]
            piece = self.module.step("score", part, self.position)
            self._cached.extend(part)
            yield piece

    def encode(
        self, ids: Sequence[int] | np.ndarray, token_types: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """float32 [len(ids), width] of an encoder. ``token_types`` (0 by default) only for models that have them.

        Raises:
            UsageError: no ids, an id outside the vocabulary, more ids than the context, or unfitting token types.
        """
        self._need("encoder")
        tokens = self._ids(ids)
        self._need_room(len(tokens))
        kinds = self.manifest.interface.token_types
        types = [0] * len(tokens) if token_types is None else [int(kind) for kind in token_types]
        fits = len(types) == len(tokens) and all(0 <= kind < kinds for kind in types)
        if token_types is not None and not fits:
            limit = f"{len(tokens)} of them, one per token, 0 to {kinds - 1}" if kinds else "this model has none"
            raise UsageError("the token types do not fit", where="token_types", limit=limit, remedy="leave them out")
        return self.module.encode(tokens, types if kinds else None)

    # Text ------------------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        ids: Sequence[int] | None = None,
        stream: Literal[False] = False,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        ids: Sequence[int] | None = None,
        stream: Literal[True],
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Generation: ...

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        ids: Sequence[int] | None = None,
        stream: bool = False,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Completion | Generation:
        """Continue a ``prompt``, answer ``messages`` through the chat template, or continue token ``ids``: one of them.

        Tokens that the cache already holds (an earlier turn of the same conversation) are not computed again.

        Args:
            stream: True returns a ``Generation``, an iterator of pieces of text with ``stats`` at its end; False
                the whole
                answer, a ``str`` with ``ids`` and ``stats``.
            max_tokens: most tokens of the answer. It also ends when the cache is full, at an end-of-text token or at a
                ``stop`` string (which is cut off).
            temperature, top_k, top_p, min_p, repetition_penalty, seed: see ``SamplingOptions``; where None, what the
                model's generation config recommends, else greedy.

        Raises:
            UsageError: an empty prompt, one longer than the context, or options outside their range.
            UnsupportedError: no tokenizer or chat template in the artifact.
        """
        self._need("decoder")
        given = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
        }
        options = self._options(given)
        limits = Limits(max_tokens, self.end_ids, (stop,) if isinstance(stop, str) else tuple(stop))
        tokens = self._prompt(prompt, messages, ids)
        generation = Generation(
            tokens,
            feed=self._feed,
            decode=self._decode,
            decoder=self.tokenizer.stream(),
            options=options,
            limits=limits,
        )
        return generation if stream else Completion.of(generation)

    def _options(self, given: dict[str, Any]) -> SamplingOptions:
        try:
            SamplingOptions.recommended(self.generation_config)
        except UsageError as error:
            raise InputError(
                f"the model recommends an impossible {error.where}: {error.what}",
                where=str(self.artifact.folder / GENERATION),
                limit=error.limit,
                remedy="correct the model's generation_config.json and compile it again",
            ) from error
        return SamplingOptions.recommended(self.generation_config, **given)

    def _prompt(self, prompt: str | None, messages: Sequence[Message] | None, ids: Sequence[int] | None) -> list[int]:
        if sum(source is not None for source in (prompt, messages, ids)) != 1:
            raise UsageError("nothing or too much to continue", remedy="pass one of prompt, messages and ids")
        if messages is not None:
            text = self.chat_template.render(messages)
            tokens = self.tokenizer.encode(text, special=False)
        elif prompt is not None:
            if not prompt:
                raise self._empty()
            tokens = self.tokenizer.encode(prompt)
        else:
            tokens = list(ids or ())
        tokens = self._ids(tokens)
        if len(tokens) > self.context:
            raise self._too_long(len(tokens))
        return tokens

    def _feed(self, tokens: Sequence[int]) -> tuple[Prediction, int]:
        """Make the cache hold exactly ``tokens``; return what follows the last and how many were there already."""
        # At least the last token is fed again: its logits are needed.
        shared = self._shared(tokens[:-1])
        self.rewind(shared)
        return Prediction(self.prefill(tokens[shared:])), shared

    def _shared(self, tokens: Sequence[int]) -> int:
        """How many tokens at the beginning of ``tokens`` the cache holds."""
        pairs = zip(self._cached, tokens, strict=False)
        return next((i for i, (old, new) in enumerate(pairs) if old != new), min(self.position, len(tokens)))

    def _decode(self, number: int) -> Prediction | None:
        if self.position >= self.context:
            return None
        return self.advance(number)

    # Checks ----------------------------------------------------------------------------------------------------------

    def _ids(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        import numpy as np

        array = np.asarray(ids)
        if array.size == 0:
            raise self._empty()
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UsageError(
                f"token ids are {array.dtype} of shape {array.shape}", limit="one row of whole numbers", where="ids"
            )
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.vocab:
            raise UsageError(
                f"token id {low if low < 0 else high} is outside the vocabulary",
                where="ids",
                limit=f"0 to {self.vocab - 1}",
            )
        return [int(number) for number in array]

    def _need(self, kind: str) -> None:
        if self.manifest.kind != kind:
            raise UnsupportedError(
                f"this model is an {self.manifest.kind}"
                if self.manifest.kind == "encoder"
                else "this model is a decoder",
                where=str(self.artifact.folder),
                remedy="use encode(ids)" if self.manifest.kind == "encoder" else "use generate, prefill or logits",
            )

    def _need_room(self, count: int) -> None:
        if self.position + count > self.context:
            raise self._too_long(self.position + count)

    def _too_long(self, count: int) -> UsageError:
        return UsageError(
            f"the text has {count} tokens",
            limit=f"the context of this artifact is {self.context} tokens",
            remedy="shorten it, or compile the model with a larger --context",
        )

    def _empty(self) -> UsageError:
        return UsageError("the prompt is empty", limit="at least one token", remedy="pass some text")

    def _member(self, name: str, remedy: str) -> Path:
        if name not in self.manifest.files:
            raise UnsupportedError(f"the artifact has no {name}", where=str(self.artifact.folder), remedy=remedy)
        return self.artifact.folder / name
