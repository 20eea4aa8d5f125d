"""Run a compiled model: ``load`` an artifact, then ``generate`` text, or ask for logits.

>>> session = load("smollm2-u4")  # doctest: +SKIP
>>> print(session.generate("The capital of France is", max_tokens=20))  # doctest: +SKIP
>>> session.logits([1, 2, 3]).shape  # doctest: +SKIP
(3, 49152)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from bitwright.errors import UnsupportedError, UsageError
from bitwright.runtime.answer import AnswerOptions, begin_answer
from bitwright.runtime.artifact import Artifact, Manifest
from bitwright.runtime.chat import ChatTemplate, Message
from bitwright.runtime.generation import Completion, Generation
from bitwright.runtime.model_text import ModelText
from bitwright.runtime.module import CompiledModule
from bitwright.runtime.sampling import Prediction
from bitwright.runtime.threads import choose_threads
from bitwright.runtime.token_cache import TokenCache
from bitwright.runtime.token_ids import checked_ids
from bitwright.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Unpack


def load(path: str | Path, *, threads: int | None = None, copy_weights: bool | None = None) -> Session:
    """Verify the artifact at ``path`` and start a session on it.

    Args:
        threads: threads to compute with; by default one per physical core this process may use.
        copy_weights: copy the weights into huge pages, which are read faster, instead of mapping their file, which
            shares memory with other processes. By default where there are huge pages and room.

    Raises:
        InputError: no artifact, or one that is damaged. Digests are checked before any of its code is opened.
        UnsupportedError: compiled for another machine or another TVM.
        UsageError: more threads than processors, or than the artifact was compiled for.
    """
    artifact = Artifact.open(path)
    step = artifact.manifest.interface.step
    count = choose_threads(threads, None if step is None else step.threads)
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
        self.cache = TokenCache(artifact.manifest, module.state)
        self.text = ModelText(artifact)

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
        return len(self.cache)

    @property
    def threads(self) -> int:
        return self.module.threads

    @property
    def tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer.

        Raises:
            UnsupportedError: it was compiled without one.
        """
        return self.text.tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """The artifact's chat template.

        Raises:
            UnsupportedError: the model has none.
        """
        return self.text.chat_template

    @property
    def has_chat_template(self) -> bool:
        return self.text.has_chat_template

    @property
    def generation_config(self) -> dict[str, Any]:
        """``generation_config.json``, empty where the artifact has none."""
        return self.text.generation_config

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer (``eos_token_id``).

        Raises:
            InputError: the generation config holds something else there.
        """
        return self.text.end_ids

    # Numbers ---------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all tokens: the next one stands at position 0."""
        self.cache.rewind(0)

    def rewind(self, position: int) -> None:
        """Forget the tokens from ``position`` on.

        Where caches keep recent tokens exact, fewer than a run of those before it may be read again.

        Raises:
            UsageError: the cache holds fewer tokens.
        """
        again = self.cache.rewind(position)
        if again:
            self.prefill(again)

    def save_cache(self, path: str | Path) -> None:
        """Write the cache and the tokens it holds to a file, whole or not at all.

        Raises:
            UsageError: the place cannot be written.
        """
        self.cache.save(Path(path))

    def restore_cache(self, path: str | Path) -> None:
        """Replace the cache by one that ``save_cache`` wrote: prompts that begin with its tokens reuse them.

        Raises:
            InputError: the file cannot be read, is damaged, or was saved by another artifact. The cache is as before.
        """
        self.cache.restore(Path(path))

    def prefill(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Append ``ids`` to the cache and return float32 [vocab], the logits behind the last of them.

        Raises:
            UsageError: no ids, an id outside the vocabulary, or more than the cache has room for.
        """
        self._need("decoder")
        tokens = checked_ids(ids, self.vocab)
        self.cache.need_room(len(tokens))
        chunk = self.manifest.interface.prefill_chunk
        logits: np.ndarray | None = None
        start = 0
        while start < len(tokens):
            part = tokens[start : start + self.cache.piece(len(tokens) - start, chunk)]
            self.cache.begin(len(part))
            logits = self.module.step("decode" if len(part) == 1 else "prefill", part, self.position)[0]
            self.cache.append(part)
            start += len(part)
        assert logits is not None
        return logits

    def decode(self, number: int) -> np.ndarray:
        """Append one token and return float32 [vocab], the logits behind it (``prefill`` of one id)."""
        return self.prefill([number])

    def advance(self, number: int) -> Prediction:
        """Append one token and return what follows it: as ``decode``, but nothing is copied.

        The logits are the step's own memory: the next token, or going back, overwrites them.

        Raises:
            UsageError: an id outside the vocabulary, or no room in the cache.
        """
        step = self.module.decode_step
        if step is None:
            return Prediction(self.decode(number))
        if not 0 <= number < self.vocab:
            checked_ids([number], self.vocab)
        self.cache.need_room(1)
        self.cache.begin(1)
        self.module.decode(number, self.position)
        self.cache.append((number,))
        return Prediction(step.logits[0], int(step.best[0]))

    def logits(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 [len(ids), vocab]: the logits behind every token of ``ids``, which start an empty cache.

        The result takes ``4 * len(ids) * vocab`` bytes (0.4 GB for 2,048 tokens and a vocabulary of 49,152).

        Raises:
            UsageError: no ids, an id outside the vocabulary, or more ids than the context.
        """
        import numpy as np

        self._need("decoder")
        count = len(checked_ids(ids, self.vocab))
        self.reset()
        self.cache.need_room(count)
        result = np.empty((count, self.vocab), dtype=np.float32)
        start = 0
        for piece in self.rows(ids):
            result[start : start + len(piece)] = piece
            start += len(piece)
        return result

    def rows(self, ids: Sequence[int] | np.ndarray, first: int = 0) -> Iterator[np.ndarray]:
        """``logits(ids)[first:]`` in pieces of at most one prefill chunk, float32 [rows, vocab] each.

        Tokens before ``first`` that the cache holds already are not computed again (but for less than a run of those
        that caches keep exact).

        Raises:
            UsageError: no ids, an id outside the vocabulary, more ids than the context, or ``first`` beyond them.
        """
        self._need("decoder")
        tokens = checked_ids(ids, self.vocab)
        if not 0 <= first < len(tokens):
            raise UsageError(f"rows from {first} on", where="first", limit=f"0 to {len(tokens) - 1}")
        self.cache.rewind(self.cache.shared(tokens[:first]))
        self.cache.need_room(len(tokens) - self.position)
        if self.position < first:
            self.prefill(tokens[self.position : first])
        chunk = self.manifest.interface.prefill_chunk
        start = first
        while start < len(tokens):
            part = tokens[start : start + self.cache.piece(len(tokens) - start, chunk)]
            self.cache.begin(len(part))
            piece = self.module.step("score", part, self.position)
            self.cache.append(part)
            start += len(part)
            yield piece

    def encode(
        self, ids: Sequence[int] | np.ndarray, token_types: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """float32 [len(ids), width] of an encoder. ``token_types`` (0 by default) only for models that have them.

        Raises:
            UsageError: no ids, an id outside the vocabulary, more ids than the context, or unfitting token types.
        """
        self._need("encoder")
        tokens = checked_ids(ids, self.vocab)
        self.cache.need_room(len(tokens))
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
        **options: Unpack[AnswerOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        ids: Sequence[int] | None = None,
        stream: Literal[True],
        **options: Unpack[AnswerOptions],
    ) -> Generation: ...

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        ids: Sequence[int] | None = None,
        stream: bool = False,
        **options: Unpack[AnswerOptions],
    ) -> Completion | Generation:
        """Continue a ``prompt``, answer ``messages`` through the chat template, or continue token ``ids``: one of them.

        Tokens that the cache already holds (an earlier turn of the same conversation) are not computed again, but for
        less than a run of those that caches keep exact.

        Args:
            stream: True returns a ``Generation``, an iterator of pieces of text with ``stats`` at its end; False the
                whole answer, a ``str`` with ``ids`` and ``stats``.
            max_tokens: most tokens of the answer. It also ends when the cache is full, at an end-of-text token or at a
                ``stop`` string (which is cut off).
            context_shift: do not end when the cache is full, nor refuse a longer prompt, but drop the older half of the
                tokens behind the first ``keep``, and read again what stays (see ``context_shift.ContextShift``).
            keep: by default what stands before the first user's text in ``messages``, and 4 tokens at least.
            temperature, top_k, top_p, min_p, repetition_penalty, seed: see ``SamplingOptions``; where None, what the
                model's generation config recommends, else greedy.

        Raises:
            UsageError: an empty prompt, one longer than the context, or options outside their range.
            UnsupportedError: no tokenizer or chat template in the artifact.
        """
        self._need("decoder")
        generation = begin_answer(self, prompt, messages, ids, **options)
        return generation if stream else Completion.of(generation)

    # Checks ----------------------------------------------------------------------------------------------------------

    def _need(self, kind: str) -> None:
        if self.manifest.kind != kind:
            raise UnsupportedError(
                f"this model is an {self.manifest.kind}"
                if self.manifest.kind == "encoder"
                else "this model is a decoder",
                where=str(self.artifact.folder),
                remedy="use encode(ids)" if self.manifest.kind == "encoder" else "use generate, prefill or logits",
            )
