"""An artifact as a model of the lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from bitwright.errors import UsageError
from bitwright.harness.continue_message import continued
from bitwright.harness.generation_options import generation_options
from bitwright.runtime.quality.encode import first_token
from bitwright.runtime.quality.likelihood import likelihoods_of
from bitwright.runtime.session import load


class BitwrightLM(TemplateLM):  # type: ignore[misc]  # lm_eval ships no types that hold
    """``--model_args``:

    Args:
        path: folder of the artifact.
        threads: threads to compute with; by default one per physical core.
        max_length: most tokens the model sees; by default the artifact's context.
        max_gen_toks: most tokens of an answer where the task does not say.
        add_bos_token: begin texts with the tokenizer's BOS or not; by default as the tokenizer does.
        prefix_token_id: what a text without context is conditioned on; by default BOS, else EOS.
        batch_size: 1; texts are computed one at a time.
        max_batch_size, device: lm_eval passes them to every model (its default device is a GPU's); this one computes on
            the CPU.

    Raises:
        UsageError: options that make no sense. What ``load`` raises.
    """

    def __init__(
        self,
        path: str,
        threads: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size not in (None, 1, "1", "auto"):
            raise UsageError(
                f"a batch size of {batch_size}", where="batch_size", limit="1", remedy="leave --batch_size out"
            )
        self.session = load(str(path), threads=threads)
        self.max_length = self.session.context if max_length is None else max_length
        if not 2 <= self.max_length <= self.session.context:
            raise UsageError(
                f"max_length is {max_length}",
                where="model_args",
                limit=f"2 to {self.session.context}, the context of this artifact",
                remedy="leave it out, or compile the model with a larger --context",
            )
        self.max_gen_toks = max_gen_toks
        self._add_bos, self._prefix = add_bos_token, prefix_token_id
        self._score = likelihoods_of(self.session.rows)

    @property
    def eot_token_id(self) -> int:
        """The first of the model's end-of-text tokens, or what texts begin with."""
        return min(self.session.end_ids, default=self.prefix_token_id)

    @property
    def prefix_token_id(self) -> int:
        if self._prefix is not None:
            return self._prefix
        return first_token(self.session.generation_config, str(self.session.artifact.folder))

    @property
    def tokenizer_name(self) -> str:
        """Names lm_eval's cache of requests: the artifact's model and its digest."""
        record = self.session.manifest.model
        return f"{record.name}-{record.digest[:16]}".replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; BOS is not put before a text that begins with it, as chat templates make them."""
        tokenizer = self.session.tokenizer
        if add_special_tokens is None:
            begun = tokenizer.token(self.prefix_token_id)
            add_special_tokens = not (begun and string.startswith(begun)) and self._add_bos is not False
        return tokenizer.encode(string, special=add_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The artifact's template, if one is wanted: it has no other to choose from."""
        if chat_template is False or chat_template is None:
            return None
        return self.session.chat_template.source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; without ``add_generation_prompt`` its last message is left open."""
        text = self.session.chat_template.render(chat_history, add_generation_prompt=add_generation_prompt)
        return text if add_generation_prompt else continued(text, chat_history[-1]["content"])

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Requests with the same context are scored together; too long a context loses its beginning."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_texts, context, continuation) in enumerate(requests):
            fitting = self._fitting(context, continuation)
            groups.setdefault(fitting, []).append(index)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            # In this order neighbours share as much of their beginning as can be: the cache keeps it.
            for group in sorted(groups):
                found = self._score(group, [requests[index][2] for index in groups[group]])
                for index, likelihood in zip(groups[group], found, strict=True):
                    answers[index] = likelihood.logprob, likelihood.greedy
                    if (texts := requests[index][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, answers[index])
                bar.update(len(groups[group]))
        return answers

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        # The last token of a continuation is predicted, not fed.
        room = self.max_length - len(continuation) + 1
        if room < 1:
            raise UsageError(
                f"a continuation of {len(continuation)} tokens",
                where="loglikelihood request",
                limit=f"{self.max_length} tokens, with at least one of context",
                remedy="compile the model with a larger --context",
            )
        return tuple(context[-room:])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Whole texts, in windows as lm_eval cuts them."""
        answers = []
        for request in tqdm(requests, desc="Running loglikelihood_rolling requests", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            answers.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers without the string that ended them; too long a prompt loses its beginning."""
        answers = []
        for request in tqdm(requests, desc="Running generate_until requests", disable=disable_tqdm):
            text, given = request.args
            options = generation_options(given, self.max_gen_toks)
            room = self.max_length - options["max_tokens"]
            if room < 1:
                raise UsageError(
                    f"answers of {options['max_tokens']} tokens",
                    where="max_gen_toks",
                    limit=f"{self.max_length - 1} tokens, for the context holds {self.max_length}",
                    remedy="ask for shorter ones, or compile the model with a larger --context",
                )
            answers.append(str(self.session.generate(ids=self.tok_encode(text)[-room:], **options)))
            self.cache_hook.add_partial("generate_until", request.args, answers[-1])
        return answers
