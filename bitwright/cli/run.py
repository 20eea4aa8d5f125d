"""``bitwright run``"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli import console
from bitwright.cli.options import (
    ArtifactArgument,
    CacheOption,
    ContextShiftOption,
    JsonOption,
    KeepOption,
    MaxTokensOption,
    MinPOption,
    PenaltyOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
)
from bitwright.cli.prompt import read_prompt
from bitwright.errors import UsageError

if TYPE_CHECKING:
    from bitwright.runtime.session import Session
    from bitwright.runtime.stats import GenerationStats

RawOption = Annotated[
    bool, typer.Option("--raw", help="Continue the prompt as plain text, even if the model has a chat template.")
]
PromptArgument = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="The prompt; `-` or nothing reads it from stdin.")
]


def command(
    artifact: ArtifactArgument,
    prompt: PromptArgument = None,
    raw: RawOption = False,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: PenaltyOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    threads: ThreadsOption = None,
    cache: CacheOption = None,
    context_shift: ContextShiftOption = False,
    keep: KeepOption = None,
    json: JsonOption = False,
) -> None:
    """Answer PROMPT, streaming the text.

    A model with a chat template answers it as a user's message; one without, or with --raw, continues it as plain text.
    """
    text = read_prompt(prompt)
    if not text.strip():
        raise UsageError("the prompt is empty", limit="at least one token", remedy="pass some text")
    from bitwright.runtime.session import load

    session = load(artifact, threads=threads)
    chat = session.has_chat_template and not raw
    if system is not None and not chat:
        raise UsageError("a system message needs a chat template", where="--system", remedy="leave it out")
    roles = [("system", system), ("user", text)]
    messages = [{"role": role, "content": content} for role, content in roles if content is not None]
    if cache is not None and cache.exists():
        session.restore_cache(cache)
    generation = session.generate(
        None if chat else text,
        messages=messages if chat else None,
        stream=True,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or (),
        context_shift=context_shift,
        keep=keep,
    )
    if json:
        answer = "".join(generation)
        save_cache(session, cache)
        document = {"text": answer, "ids": generation.ids, "bytes": session.manifest.run_bytes}
        console.print_json({**document, **generation.stats.to_dict()})
        return
    for piece in generation:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    save_cache(session, cache)
    console.note(describe(generation.stats))


def save_cache(session: Session, path: Path | None) -> None:
    """Save the session's cache where a path was given."""
    if path is not None:
        session.save_cache(path)


def describe(stats: GenerationStats) -> str:
    """One line of figures for people."""
    parts = [f"{stats.prompt_tokens} prompt tokens"]
    if stats.reused_tokens:
        parts[0] += f" ({stats.reused_tokens} cached)"
    parts.append(f"first token after {stats.first_token_seconds * 1000:.0f} ms")
    parts.append(f"{stats.new_tokens} tokens")
    if stats.dropped_tokens:
        parts.append(f"{stats.dropped_tokens} older ones dropped")
    if stats.decode_tokens_per_second is not None:
        parts.append(f"{stats.decode_tokens_per_second:.1f} tokens/s")
    return f"[{', '.join(parts)}, stopped by {stats.stop_reason}]"
