"""The adapter in lm_eval itself: local tasks on the toy artifact, against values computed from its oracle."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bitwright.errors import UsageError
from bitwright.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install 'bitwright[lm-eval]'"
)

PREFIX = 256  # the toy's eos_token_id: it has no bos_token_id
CONTEXT = 48

CHOICES = [
    {"question": "the sky is", "choices": ["blue", "green", "a dog"], "label": 0},
    {"question": "two and two", "choices": ["four", "five"], "label": 1},
]
TEXTS = ["the quick brown fox", "x" * 100]
PROMPTS = [{"question": "say a", "answer": "b"}, {"question": "once upon a time", "answer": "c"}]

TASKS = {
    "toy_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "toy_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
""",
    "toy_answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["zz"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task files and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    data = {"toy_choice": CHOICES, "toy_text": [{"text": text} for text in TEXTS], "toy_answer": PROMPTS}
    for name, entries in data.items():
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {lines}}}}}\n"
            f"test_split: test\n{TASKS[name]}"
        )
    return folder


def evaluated(tasks: Path, artifact_path: Path, task: str, **options: Any) -> Any:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from bitwright.harness import register

    register()
    return lm_eval.simple_evaluate(
        model="bitwright",
        model_args=f"path={artifact_path},threads=1",
        tasks=[task],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )


@pytest.fixture(scope="module")
def model(artifact_path: Path) -> Any:
    from bitwright.harness.model import BitwrightLM

    return BitwrightLM(str(artifact_path), threads=1)


@pytest.fixture(scope="module")
def tokenizer(artifact_path: Path) -> Tokenizer:
    return Tokenizer(artifact_path / "tokenizer.json")


def logprobs(toy: Any, ids: list[int]) -> np.ndarray:
    """ln p of every token but the first, by the oracle."""
    rows = toy.logits(ids)[:-1].astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    logs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return logs[np.arange(len(ids) - 1), ids[1:]]


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_multiple_choice(tasks: Path, artifact_path: Path, toy: Any, tokenizer: Tokenizer) -> None:
    results = evaluated(tasks, artifact_path, "toy_choice")
    right = []
    for entry, sample in zip(CHOICES, results["samples"]["toy_choice"], strict=True):
        context = tokenizer.encode(entry["question"])
        expected = []
        for choice in entry["choices"]:
            ids = tokenizer.encode(f"{entry['question']} {choice}")
            expected.append(logprobs(toy, ids)[len(context) - 1 :].sum())
        found = [float(response[0][0]) for response in sample["resps"]]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        right.append(int(np.argmax(expected)) == entry["label"])
    assert results["results"]["toy_choice"]["acc,none"] == np.mean(right)


def test_rolling(tasks: Path, artifact_path: Path, toy: Any, tokenizer: Tokenizer) -> None:
    results = evaluated(tasks, artifact_path, "toy_text")
    total = 0.0
    for text, sample in zip(TEXTS, results["samples"]["toy_text"], strict=True):
        ids, expected = tokenizer.encode(text), 0.0
        # Windows of 48: the first is conditioned on the prefix, the others on as many tokens as still fit.
        for start in range(0, len(ids), CONTEXT):
            window = ids[start : start + CONTEXT]
            before = [PREFIX] if not start else ids[start + len(window) - CONTEXT - 1 : start]
            expected += logprobs(toy, [*before, *window])[len(before) - 1 :].sum()
        assert sample["resps"][0][0] == pytest.approx(expected, rel=1e-9)
        total += expected
    bytes_ = sum(len(text.encode()) for text in TEXTS)
    assert results["results"]["toy_text"]["byte_perplexity,none"] == pytest.approx(np.exp(-total / bytes_), rel=1e-9)


def test_generation(tasks: Path, artifact_path: Path, toy: Any, tokenizer: Tokenizer) -> None:
    samples = evaluated(tasks, artifact_path, "toy_answer")["samples"]["toy_answer"]
    for entry, sample in zip(PROMPTS, samples, strict=True):
        ids = toy.greedy(tokenizer.encode(entry["question"]), 6)
        assert sample["resps"][0][0] == tokenizer.decode(ids)


def test_chat_template(tasks: Path, artifact_path: Path, toy: Any, tokenizer: Tokenizer) -> None:
    results = evaluated(tasks, artifact_path, "toy_answer", apply_chat_template=True)
    for entry, sample in zip(PROMPTS, results["samples"]["toy_answer"], strict=True):
        prompt = f"<|user|>{entry['question']}<eos><|assistant|>"
        assert sample["arguments"][0][0] == prompt
        expected = toy.greedy(tokenizer.encode(prompt, special=False), 6)
        assert sample["resps"][0][0] == tokenizer.decode(expected)


def test_the_chat_template_is_the_artifacts_own(model: Any, artifact_path: Path) -> None:
    assert model.chat_template(True) == (artifact_path / "chat_template.jinja").read_text()
    assert model.chat_template(False) is None
    history = [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "It is"}]
    assert model.apply_chat_template(history, add_generation_prompt=False) == "<|user|>say a<eos><|assistant|>It is"


def test_a_stop_string_ends_the_answer_and_is_cut_off(model: Any, toy: Any, tokenizer: Tokenizer) -> None:
    prompt = "once upon a time"
    whole = model.generate_until([request(prompt, {"max_gen_toks": 6})], disable_tqdm=True)[0]
    stop = whole[2:4]
    (cut,) = model.generate_until([request(prompt, {"until": [stop], "max_gen_toks": 6})], disable_tqdm=True)
    assert cut == whole[: whole.index(stop)]


def test_loglikelihood_without_context_and_whether_it_is_greedy(model: Any, toy: Any, tokenizer: Tokenizer) -> None:
    best = tokenizer.decode(toy.greedy([PREFIX], 1))
    answers = model.loglikelihood([request("", "abc"), request("", best), request("abc", " d")], disable_tqdm=True)
    assert answers[0][0] == pytest.approx(logprobs(toy, [PREFIX, *tokenizer.encode("abc")]).sum(), rel=1e-9)
    assert answers[1][1] is True or not best
    assert answers[2][0] == pytest.approx(logprobs(toy, tokenizer.encode("abc d"))[2:].sum(), rel=1e-9)


def test_too_long_a_context_loses_its_beginning(model: Any, toy: Any, tokenizer: Tokenizer) -> None:
    text = "the quick brown fox jumps over the lazy dog and goes home"
    ids, ending = tokenizer.encode(text), tokenizer.encode(" again")
    (answer,) = model.loglikelihood([request(text, " again")], disable_tqdm=True)
    kept = ids[-(CONTEXT - len(ending) + 1) :]
    assert answer[0] == pytest.approx(logprobs(toy, [*kept, *ending])[len(kept) - 1 :].sum(), rel=1e-9)
    with pytest.raises(UsageError, match="a continuation of 49 tokens"):
        model.loglikelihood([request("a", "b" * 49)], disable_tqdm=True)
    with pytest.raises(UsageError, match="answers of 48 tokens"):
        model.generate_until([request("a", {"max_gen_toks": 48})], disable_tqdm=True)


def test_requests_of_one_context_are_computed_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    step = model.session.module.step
    monkeypatch.setattr(
        model.session.module, "step", lambda name, part, at: fed.append(len(part)) or step(name, part, at)
    )
    model.loglikelihood([request("abcdefgh", " x"), request("abcdefgh", " y"), request("abcdefgh", " z")], True)
    assert sum(fed) == 8 + 1 + 1 + 1  # the context, and the space of each: its second byte is predicted only


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 8}, "a batch size of 8"),
        ({"max_length": 49}, "max_length is 49"),
        ({"max_length": 1}, "max_length is 1"),
    ],
)
def test_options_that_make_no_sense(artifact_path: Path, options: dict[str, Any], text: str) -> None:
    from bitwright.harness.model import BitwrightLM

    with pytest.raises(UsageError, match=text):
        BitwrightLM(str(artifact_path), threads=1, **options)


def test_bos_is_added_as_the_tokenizer_does_unless_told_otherwise(model: Any) -> None:
    class Beginning:
        """A tokenizer that puts 256 before a text."""

        def encode(self, text: str, *, special: bool) -> list[int]:
            return [PREFIX] * special + list(text.encode())

        def token(self, number: int) -> str:
            return "<eos>"

    from bitwright.harness.model import BitwrightLM

    stub: Any = SimpleNamespace(session=SimpleNamespace(tokenizer=Beginning()), prefix_token_id=PREFIX, _add_bos=None)
    assert BitwrightLM.tok_encode(stub, "a") == [PREFIX, 97]
    assert BitwrightLM.tok_encode(stub, "<eos>a")[0] != PREFIX
    assert BitwrightLM.tok_encode(stub, "a", add_special_tokens=False) == [97]
    stub._add_bos = False
    assert BitwrightLM.tok_encode(stub, "a") == [97]


def test_an_entry_point_is_taken_by_the_registry(artifact_path: Path) -> None:
    """What releases of lm_eval after 0.4.13 do with the declaration in pyproject.toml."""
    from importlib.metadata import EntryPoint

    from lm_eval.api.model import LM
    from lm_eval.api.registry import Registry

    from bitwright.harness.model import BitwrightLM

    registry = Registry("model", base_cls=LM)
    registry.register(
        "bitwright", target=EntryPoint("bitwright", "bitwright.harness.model:BitwrightLM", "lm_eval.models")
    )
    assert registry.get("bitwright") is BitwrightLM


@pytest.mark.slow
def test_the_command(tasks: Path, artifact_path: Path, tmp_path: Path) -> None:
    line = [
        sys.executable, "-m", "bitwright.harness", "run", "--model", "bitwright",
        "--model_args", f"path={artifact_path},threads=1",
        "--tasks", "toy_choice", "--include_path", str(tasks), "--output_path", str(tmp_path / "out.json"),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "|toy_choice|" in done.stdout
    assert list(tmp_path.glob("**/*.json"))
