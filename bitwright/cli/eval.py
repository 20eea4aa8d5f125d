"""``bitwright eval``"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.cli import console
from bitwright.cli.evaluation_tables import print_accuracy, print_evaluation, print_retrieval
from bitwright.cli.options import ArtifactArgument, JsonOption, ThreadsOption, parse_counts
from bitwright.cli.prompt import read_text
from bitwright.errors import UsageError

if TYPE_CHECKING:
    from bitwright.frontend.interpreter.rows import CachedRows
    from bitwright.runtime.quality.likelihood import Likelihoods
    from bitwright.runtime.rows import Logits
    from bitwright.runtime.session import Session

DEFAULT_WINDOW, DEFAULT_DOCUMENTS = 512, 5
TASKS = ("--text", "--last-word", "--minimal-pairs", "--retrieval")


def command(
    artifact: ArtifactArgument,
    text: Annotated[Path | None, typer.Option("--text", help="Perplexity on this file of UTF-8 text.")] = None,
    last_word: Annotated[
        Path | None, typer.Option("--last-word", help='Guess last words: JSON Lines of {"text": ...}.')
    ] = None,
    minimal_pairs: Annotated[
        Path | None,
        typer.Option("--minimal-pairs", help='JSON Lines of {"sentence_good": ..., "sentence_bad": ...}.'),
    ] = None,
    retrieval: Annotated[
        bool, typer.Option("--retrieval", help="Find facts at several depths of generated documents.")
    ] = False,
    ctx: Annotated[
        str | None,
        typer.Option(
            "--ctx",
            help="With --text: tokens of a window (512); windows do not overlap. "
            "With --retrieval: tokens of documents, e.g. 2048,4096 (the artifact's context).",
        ),
    ] = None,
    windows: Annotated[int | None, typer.Option("--windows", help="Most windows of a text. Default: all.")] = None,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Figures of a text for ranges of positions as well.")
    ] = False,
    documents: Annotated[
        int | None, typer.Option("--documents", help=f"Documents of each length. Default: {DEFAULT_DOCUMENTS}.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the documents. Default: 0.")] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL", help="Unquantized model to compare with (needs torch)."),
    ] = None,
    reference_cache: Annotated[
        Path | None, typer.Option("--reference-cache", help="Folder that keeps the reference's predictions.")
    ] = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure quality: perplexity of a text, or accuracy on a task; with --reference beside the unquantized model.

    One of --text, --last-word, --minimal-pairs and --retrieval says what is measured.
    """
    given = (text is not None, last_word is not None, minimal_pairs is not None, retrieval)
    if sum(given) != 1:
        raise UsageError(
            f"{sum(given) or 'no'} tasks to measure quality on",
            limit=f"one of {', '.join(TASKS)}",
            remedy="name one; call the command again for another",
        )
    _refuse_strangers(TASKS[given.index(True)], ctx, windows, by_position, documents, seed)
    if reference_cache is not None and reference is None:
        raise UsageError("there is no reference to keep", where="--reference-cache", remedy="name it with --reference")
    float_model = None if reference is None else _Reference(reference, reference_cache)
    if text is not None:
        _text(artifact, read_text(text), _window(ctx), windows, by_position, float_model, threads, json)
    elif last_word is not None:
        _last_word(artifact, last_word, float_model, threads, json)
    elif minimal_pairs is not None:
        _minimal_pairs(artifact, minimal_pairs, float_model, threads, json)
    else:
        count = DEFAULT_DOCUMENTS if documents is None else documents
        _retrieval(artifact, ctx, count, seed or 0, float_model, threads, json)


def _refuse_strangers(
    task: str, ctx: str | None, windows: int | None, by_position: bool, documents: int | None, seed: int | None
) -> None:
    belongs = {
        "--ctx": (ctx is not None, ("--text", "--retrieval")),
        "--windows": (windows is not None, ("--text",)),
        "--by-position": (by_position, ("--text",)),
        "--documents": (documents is not None, ("--retrieval",)),
        "--seed": (seed is not None, ("--retrieval",)),
    }
    for option, (given, tasks) in belongs.items():
        if given and task not in tasks:
            raise UsageError(
                f"{option} says nothing about {task}",
                where=option,
                limit=f"an option of {' and '.join(tasks)}",
                remedy="leave it out",
            )


@dataclass
class _Reference:
    """The float model, computed by torch from canonical ONNX; read when first asked for."""

    model: str
    cache: Path | None
    _loaded: tuple[CachedRows, str] | None = None

    def logits(self, *, whole: bool) -> Logits:
        """For windows: their second halves, or all their positions."""
        from bitwright.runtime.reference_cache import ReferenceCache

        rows, digest = self._load()
        return rows if self.cache is None else ReferenceCache(self.cache, digest, rows, whole=whole)

    def likelihoods(self) -> Likelihoods:
        from bitwright.runtime.quality.likelihood import likelihoods_of
        from bitwright.runtime.quality.likelihood_cache import LikelihoodCache

        rows, digest = self._load()
        computed = likelihoods_of(rows)
        return computed if self.cache is None else LikelihoodCache(self.cache, digest, computed)

    def _load(self) -> tuple[CachedRows, str]:
        if self._loaded is None:
            from bitwright.frontend import load
            from bitwright.frontend.interpreter import Interpreter
            from bitwright.frontend.interpreter.rows import CachedRows

            with console.phases("reading the reference") as tell:
                imported: Any = load(self.model, progress=lambda phase, _fraction: tell(phase))
            self._loaded = CachedRows(Interpreter(imported.graph)), imported.digest
        return self._loaded


def _window(ctx: str | None) -> int:
    counts = [DEFAULT_WINDOW] if ctx is None else parse_counts(ctx, "--ctx")
    if len(counts) != 1:
        raise UsageError(
            f"{len(counts)} window sizes", where="--ctx", limit="one with --text", remedy="pass one, e.g. --ctx 512"
        )
    return counts[0]


def _require_context(session: Session, tokens: int, what: str) -> None:
    if tokens > session.context:
        raise UsageError(
            f"{what} of {tokens} tokens",
            where="--ctx",
            limit=f"the context of this artifact is {session.context} tokens",
            remedy=f"use --ctx {session.context} or less, or compile the model with a larger --context",
        )


def _text(
    artifact: Path,
    content: str,
    ctx: int,
    windows: int | None,
    by_position: bool,
    reference: _Reference | None,
    threads: int | None,
    json: bool,
) -> None:
    from bitwright.runtime.evaluate import score_windows, second_half, windows_of
    from bitwright.runtime.session import load

    session = load(artifact, threads=threads)
    tokens = session.tokenizer.encode(content, special=False)
    _require_context(session, ctx, "windows")
    cut = windows_of(tokens, ctx, windows)  # a text that is too short is refused before the reference is loaded
    expected = None if reference is None else reference.logits(whole=by_position)
    start = 0 if by_position else second_half(ctx).start
    with console.progress("scoring windows") as advance:
        scores = score_windows(session.rows, cut, expected, start=start, progress=advance)
    found, ranges = scores.evaluation(), scores.by_position() if by_position else None
    if not json:
        print_evaluation(session.manifest.run_bytes, found, ranges)
        return
    document = {"bytes": session.manifest.run_bytes, **found.to_json()}
    if ranges is not None:
        document["positions"] = [entry.to_json() for entry in ranges]
    console.print_json(document)


def _last_word(artifact: Path, path: Path, reference: _Reference | None, threads: int | None, json: bool) -> None:
    from bitwright.runtime.quality.accuracy import last_word_accuracy, last_word_json
    from bitwright.runtime.quality.items import last_words
    from bitwright.runtime.session import load

    items = last_words(read_text(path), str(path))
    session = load(artifact, threads=threads)

    def score(likelihoods: Likelihoods, advance: console.Progress) -> Any:
        return last_word_accuracy(likelihoods, items, session.tokenizer, session.context, advance)

    model, beside = _both(score, session, reference)
    _show(session, last_word_json(model, beside), json, print_accuracy)


def _minimal_pairs(artifact: Path, path: Path, reference: _Reference | None, threads: int | None, json: bool) -> None:
    from bitwright.runtime.quality.accuracy import minimal_pair_accuracy, minimal_pairs_json
    from bitwright.runtime.quality.encode import first_token
    from bitwright.runtime.quality.items import minimal_pairs
    from bitwright.runtime.session import load

    items = minimal_pairs(read_text(path), str(path))
    session = load(artifact, threads=threads)
    first = first_token(session.generation_config, str(artifact))

    def score(likelihoods: Likelihoods, advance: console.Progress) -> Any:
        return minimal_pair_accuracy(likelihoods, items, session.tokenizer, first, session.context, advance)

    model, beside = _both(score, session, reference)
    _show(session, minimal_pairs_json(model, beside), json, print_accuracy)


def _retrieval(
    artifact: Path,
    ctx: str | None,
    documents: int,
    seed: int,
    reference: _Reference | None,
    threads: int | None,
    json: bool,
) -> None:
    from bitwright.runtime.quality.retrieval import retrieve
    from bitwright.runtime.session import load

    if documents < 1 or seed < 0:
        option, value = ("--documents", documents) if documents < 1 else ("--seed", seed)
        limit = "at least 1" if documents < 1 else "at least 0"
        raise UsageError(f"{option} is {value}", where=option, limit=limit, remedy="leave it out for the default")
    session = load(artifact, threads=threads)
    lengths = [session.context] if ctx is None else parse_counts(ctx, "--ctx")
    _require_context(session, max(lengths), "documents")

    def score(likelihoods: Likelihoods, advance: console.Progress) -> Any:
        return retrieve(likelihoods, session.tokenizer, lengths, documents, seed, advance)

    model, beside = _both(score, session, reference)
    _show(session, model.to_json(beside), json, print_retrieval)


def _both(
    score: Callable[[Likelihoods, console.Progress], Any], session: Session, reference: _Reference | None
) -> tuple[Any, Any]:
    """``score`` of the artifact, and of the reference if there is one."""
    from bitwright.runtime.quality.likelihood import likelihoods_of

    with console.progress("the artifact") as advance:
        model = score(likelihoods_of(session.rows), advance)
    if reference is None:
        return model, None
    likelihoods = reference.likelihoods()
    with console.progress("the reference") as advance:
        return model, score(likelihoods, advance)


def _show(session: Session, found: dict[str, Any], json: bool, table: Callable[[int, dict[str, Any]], None]) -> None:
    if json:
        console.print_json({"bytes": session.manifest.run_bytes, **found})
    else:
        table(session.manifest.run_bytes, next(iter(found.values())))
