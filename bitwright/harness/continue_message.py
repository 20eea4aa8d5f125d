"""Prompts whose last message is to be continued."""

from __future__ import annotations

from bitwright.errors import InputError


def continued(text: str, message: str) -> str:
    """``text``, a rendered conversation, cut behind its last message: without what the template ends a message with.

    Raises:
        InputError: the template changed the message, so that its end cannot be found.
    """
    content = message.strip()
    at = text.rfind(content)
    if at < 0:
        raise InputError(
            "the chat template does not show the last message as it is",
            where="chat template",
            limit=f"a message of {len(message)} characters that is to be continued",
            remedy="use a task without a prefilled answer (gen_prefix)",
        )
    return text[: at + len(content)]
