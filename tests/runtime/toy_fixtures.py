"""The toy model, built once per test run, and the tokenizer and chat template it is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bitwright.runtime.session import Session, load
from tests.runtime import toy as toy_model

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> bytes:
    """A byte-level tokenizer without merges: ids 0..255 are bytes (in GPT-2's alphabet), then the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<eos>", "<|user|>", "<|assistant|>", "<|system|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return str(tokenizer.to_str()).encode()


VOCAB = 260


@pytest.fixture(scope="session")
def executable() -> Any:
    return toy_model.build(VOCAB)


@pytest.fixture(scope="session")
def toy() -> toy_model.Toy:
    return toy_model.Toy.make(VOCAB)


@pytest.fixture(scope="session")
def parts() -> dict[str, Any]:
    """Optional files of the toy artifact."""
    return {
        "tokenizer_json": byte_tokenizer(),
        "chat_template": CHAT_TEMPLATE,
        "generation": {"eos_token_id": 256},
        "report": "# Toy\n",
    }


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory: pytest.TempPathFactory, toy: Any, executable: Any, parts: Any) -> Path:
    """The toy artifact. Tests must not change it: they copy it."""
    path = tmp_path_factory.mktemp("artifacts") / "toy"
    toy_model.write(path, toy, executable, **parts)
    return path


THREADS = min(2, len(os.sched_getaffinity(0)))
"""Two, so that parallel loops are parallel, on machines that have as many."""


@pytest.fixture(scope="session")
def session_of_two(artifact_path: Path) -> Session:
    return load(artifact_path, threads=THREADS)


@pytest.fixture
def session(session_of_two: Session) -> Session:
    session_of_two.reset()
    session_of_two.module.use_threads(THREADS)
    return session_of_two
