"""``bitwright eval``: its tasks on the toy artifact against the toy's oracle, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.answers import failed, json_of


def test_eval(command: Any, artifact_path: Path, text_file: Path, toy: Any) -> None:
    import bitwright

    document = json_of(command("eval", artifact_path, "--text", text_file, "--ctx", "16", "--json"))
    ids = bitwright.load(artifact_path, threads=1).tokenizer.encode(text_file.read_text())
    windows = np.array(ids[: len(ids) // 16 * 16]).reshape(-1, 16)
    logits = np.stack([toy.logits(window) for window in windows]).astype(np.float64)
    logs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logs -= logits.max(-1, keepdims=True)
    losses = -np.take_along_axis(logs[:, :-1], windows[:, 1:, None], -1)
    assert document["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-9)
    assert (document["windows"], document["context"]) == (len(windows), 16)
    assert document["bytes"] == (artifact_path / "weights.safetensors").stat().st_size
    assert document["kl"] is None
    table = command("eval", artifact_path, "--text", text_file, "--ctx", "16", "--windows", "2").stdout.decode()
    assert "2 of 16 tokens" in table


def test_eval_refuses_text_that_is_not_utf8(command: Any, artifact_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abc\xff")
    failed(command("eval", artifact_path, "--text", path), 3, f"the text is not valid UTF-8\n  where: {path}, byte 3")
    failed(command("eval", artifact_path, "--text", tmp_path / "no"), 3, "cannot read the text: No such file")


def test_eval_refuses_text_that_is_too_short_or_endless(
    command: Any, artifact_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    path.write_text("Hello")
    failed(command("eval", artifact_path, "--text", path, "--ctx", "16"), 3, "the text has 5 tokens, too few for one")
    monkeypatch.setattr("bitwright.cli.prompt.MOST_TEXT_BYTES", 3_000_000)
    failed(command("eval", artifact_path, "--text", "/dev/zero"), 3, "the text is too long\n  where: /dev/zero")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--ctx", "0"], 2, "windows of 0 tokens cannot be scored"),
        (["--ctx", "64"], 2, "the context of this artifact is 48 tokens\n  remedy: use --ctx 48 or less"),
        ([], 2, "the context of this artifact is 48 tokens\n  remedy: use --ctx 48 or less"),
        (["--ctx", "16", "--windows", "0"], 2, "0 windows were asked for"),
        (["--ctx", "16,32"], 2, "2 window sizes\n  where: --ctx\n  limit: one with --text"),
        (["--ctx", "x"], 2, "'x' is no list of counts\n  where: --ctx"),
        (["--documents", "2"], 2, "--documents says nothing about --text"),
        (["--seed", "2"], 2, "--seed says nothing about --text"),
        (["--reference-cache", "c"], 2, "there is no reference to keep\n  where: --reference-cache"),
        (["--retrieval"], 2, "2 tasks to measure quality on\n  limit: one of --text, --last-word"),
    ],
)
def test_eval_refuses(
    command: Any, artifact_path: Path, text_file: Path, arguments: list[str], code: int, text: str
) -> None:
    failed(command("eval", artifact_path, "--text", text_file, *arguments), code, text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no tasks to measure quality on\n  limit: one of --text, --last-word, --minimal-pairs, --retrieval"),
        (["--retrieval", "--windows", "2"], "--windows says nothing about --retrieval"),
        (["--retrieval", "--by-position"], "--by-position says nothing about --retrieval"),
        (["--retrieval", "--documents", "0"], "--documents is 0\n  where: --documents\n  limit: at least 1"),
        (["--retrieval", "--seed", "-1"], "--seed is -1\n  where: --seed\n  limit: at least 0"),
        (["--retrieval", "--ctx", "32,64"], "documents of 64 tokens\n  where: --ctx\n  limit: the context of this"),
        (["--retrieval"], "a document of 48 tokens\n  where: --ctx"),
        (["--last-word", "f", "--ctx", "16"], "--ctx says nothing about --last-word"),
        (["--minimal-pairs", "f", "--seed", "1"], "--seed says nothing about --minimal-pairs"),
    ],
)
def test_eval_refuses_options_that_do_not_fit(
    command: Any, artifact_path: Path, arguments: list[str], text: str
) -> None:
    failed(command("eval", artifact_path, *arguments), 2, text)


def test_eval_by_position(command: Any, artifact_path: Path, text_file: Path) -> None:
    arguments = ("eval", artifact_path, "--text", text_file, "--ctx", "16", "--by-position")
    document = json_of(command(*arguments, "--json"))
    (entry,) = document["positions"]
    assert entry == {"first": 1, "last": 15, "perplexity": document["perplexity"], "kl": None, "top1": None}
    assert "1-15" in command(*arguments).stdout.decode()


def logprob(toy: Any, context: list[int], tokens: list[int]) -> float:
    rows = toy.logits([*context, *tokens])[len(context) - 1 : -1].astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    logs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return float(logs[np.arange(len(tokens)), tokens].sum())


def test_eval_last_word(command: Any, artifact_path: Path, tmp_path: Path, toy: Any) -> None:
    path, texts = tmp_path / "items.jsonl", ["the quick brown", "a lazy dog"]
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    document = json_of(command("eval", artifact_path, "--last-word", path, "--json"))
    tokenizer, scores, right = _tokenizer(artifact_path), [], []
    for text in texts:
        context, word = (tokenizer.encode(part) for part in (text.rpartition(" ")[0], " " + text.split(" ")[-1]))
        scores.append(logprob(toy, context, word))
        right.append([int(r.argmax()) for r in toy.logits([*context, *word])[len(context) - 1 : -1]] == word)
    found = document["last_word"]
    assert found["loss"] == pytest.approx(-np.mean(scores), rel=1e-9)
    assert (found["accuracy"], found["items"], found["reference"]) == (np.mean(right), 2, None)
    assert "loss per last word" in command("eval", artifact_path, "--last-word", path).stdout.decode()


def test_eval_minimal_pairs(command: Any, artifact_path: Path, tmp_path: Path, toy: Any) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"sentence_good": "the dogs run", "sentence_bad": "the dogs runs"}\n')
    document = json_of(command("eval", artifact_path, "--minimal-pairs", path, "--json"))
    tokenizer, first = _tokenizer(artifact_path), 256  # the toy's eos_token_id; it has no bos_token_id
    good, bad = (logprob(toy, [first], tokenizer.encode(text)) for text in ("the dogs run", "the dogs runs"))
    found = document["minimal_pairs"]
    assert found["margin"] == pytest.approx(good - bad, rel=1e-9)
    assert (found["accuracy"], found["items"]) == (float(good > bad), 1)
    assert "ln p(good)" in command("eval", artifact_path, "--minimal-pairs", path).stdout.decode()


def _tokenizer(artifact_path: Path) -> Any:
    from bitwright.runtime.tokenizer import Tokenizer

    return Tokenizer(artifact_path / "tokenizer.json")


def test_eval_retrieval(command: Any, tmp_path: Path, toy: Any, parts: Any) -> None:
    from tests.runtime import toy as toy_model

    executable = toy_model.build(toy.vocab, 512)
    toy_model.write(tmp_path / "long", toy, executable, context=512, **parts)
    arguments = ("eval", tmp_path / "long", "--retrieval", "--ctx", "400,512", "--documents", "2")
    found = json_of(command(*arguments, "--json"))["retrieval"]
    assert {(cell["context"], cell["depth"]) for cell in found["grid"]} == {
        (length, depth) for length in (400, 512) for depth in (0.125, 0.375, 0.625, 0.875)
    }
    assert found["accuracy"] == np.mean([cell["accuracy"] for cell in found["grid"]])
    assert (found["documents"], found["chance"], found["reference"]) == (2, 0.25, None)
    assert json_of(command(*arguments, "--json"))["retrieval"] == found
    assert json_of(command(*arguments, "--json", "--seed", "1"))["retrieval"] != found
    assert "(chance 25.00 %)" in command(*arguments).stdout.decode()


@pytest.mark.parametrize(
    ("option", "line", "text"),
    [
        ("--last-word", "{", "the line is not JSON"),
        ("--last-word", '{"words": "a b"}', "the line has no text under 'text'"),
        ("--minimal-pairs", '{"sentence_good": "a"}', "the line has no text under 'sentence_bad'"),
        ("--minimal-pairs", "", "the file holds no items"),
    ],
)
def test_eval_names_the_line_that_is_wrong(
    command: Any, artifact_path: Path, tmp_path: Path, option: str, line: str, text: str
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(line)
    where = f"{path}, line 1" if line else str(path)
    failed(command("eval", artifact_path, option, path), 3, f"{text}\n  where: {where}\n  limit: {{")
    failed(command("eval", artifact_path, option, tmp_path / "no"), 3, "cannot read the text: No such file")


def test_eval_refuses_items_longer_than_the_context(command: Any, artifact_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(f'{{"text": "{"a" * 47} b"}}')
    failed(command("eval", artifact_path, "--last-word", path), 2, f"the item has 49 tokens\n  where: {path}, line 1")
