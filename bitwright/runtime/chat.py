"""Chat templates: messages to one prompt, in a sandbox.

Templates are Jinja programs written for Hugging Face transformers; the environment offers what they rely on there:
trimmed blocks, loop controls, ``raise_exception``, ``strftime_now``, a ``tojson`` that keeps Unicode, and the
``generation`` tag.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from bitwright.errors import InputError, UsageError
from bitwright.runtime.memory_limit import memory_limit

MOST_MEMORY = 1 << 30
"""Bytes a template may take: a program of a model's author must not be able to fill the machine."""

Message = Mapping[str, Any]
"""``{"role": "user", "content": "Hello"}``"""


class ChatTemplate:
    """A compiled chat template.

    Raises:
        InputError: the template is not valid Jinja.
    """

    def __init__(self, source: str, *, where: str, tokens: Mapping[str, str] | None = None) -> None:
        """``tokens``: variables for the template such as ``bos_token``."""
        import jinja2

        self.source, self._where = source, where
        self._tokens = dict(tokens or {})
        try:
            with memory_limit(MOST_MEMORY):  # constant expressions are computed here
                self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            raise self._failed("the chat template is not valid", error) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt for ``messages``, ending where the assistant's answer begins.

        Raises:
            UsageError: no messages, or one without role and content.
            InputError: the template fails or refuses these messages.
        """
        if not messages:
            raise UsageError("there are no messages", where="messages", remedy="pass at least one message")
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise UsageError(
                    "a message lacks its role or content",
                    where=f"message {number}",
                    limit='{"role": "user", "content": "..."}',
                )
        try:
            with memory_limit(MOST_MEMORY):
                text: str = self._template.render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=add_generation_prompt,
                    tools=None,
                    documents=None,
                    **self._tokens,
                )
            return text
        except Exception as error:  # a template is a program: it can raise anything
            raise self._failed("the chat template failed", error) from error

    def _failed(self, what: str, error: Exception) -> InputError:
        line = getattr(error, "lineno", None)
        where = f"{self._where}, line {line}" if line else self._where
        return InputError(
            what,
            where=where,
            limit=f"at most {MOST_MEMORY} bytes of memory"
            if isinstance(error, MemoryError)
            else str(error) or type(error).__name__,
            remedy="pass other messages, or a plain prompt instead",
        )


def _environment() -> Any:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the text of the assistant for training; here it is just its content."""

        tags = {"generation"}  # noqa: RUF012 - the base class declares it so

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda text: datetime.datetime.now().strftime(text)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
