"""Sessions on the toy model: logits equal the NumPy oracle exactly, however the tokens are fed."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bitwright
from bitwright.errors import InputError, UnsupportedError, UsageError
from bitwright.runtime.session import Session
from tests.runtime.toy import CHUNK, CONTEXT, write

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 97, 93, 23, 84, 62, 64, 33, 83, 27, 95, 0, 255]


def test_package_exports_load() -> None:
    assert bitwright.load is __import__("bitwright.runtime.session", fromlist=["load"]).load


def test_logits_of_all_positions_cross_chunks(session: Session, toy: Any) -> None:
    assert len(IDS) > CHUNK
    np.testing.assert_array_equal(session.logits(IDS), toy.logits(IDS))
    assert session.position == len(IDS)


def test_logits_start_from_an_empty_cache(session: Session, toy: Any) -> None:
    session.prefill([7, 7, 7])
    np.testing.assert_array_equal(session.logits(IDS[:5]), toy.logits(IDS[:5]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(IDS) - 1), max_size=5))
def test_any_split_of_the_prompt_gives_the_same_logits(session: Session, toy: Any, cuts: list[int]) -> None:
    session.reset()
    bounds = sorted({0, len(IDS), *cuts})
    for start, end in pairwise(bounds):
        logits = session.prefill(IDS[start:end])
    np.testing.assert_array_equal(logits, toy.logits(IDS)[-1])


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, CONTEXT - 1, CONTEXT])
def test_every_prompt_length_up_to_the_context(session: Session, toy: Any, length: int) -> None:
    ids = [(7 * number) % toy.vocab for number in range(length)]
    np.testing.assert_array_equal(session.prefill(ids), toy.logits(ids)[-1])


def test_decode_continues_prefill(session: Session, toy: Any) -> None:
    session.prefill(IDS[:10])
    for count in range(10, len(IDS)):
        np.testing.assert_array_equal(session.decode(IDS[count]), toy.logits(IDS[: count + 1])[-1])


def test_one_thread_and_two_threads_agree(session: Session, toy: Any) -> None:
    session.module.use_threads(1)
    np.testing.assert_array_equal(session.logits(IDS), toy.logits(IDS))


def test_earlier_logits_are_not_overwritten_by_later_calls(session: Session, toy: Any) -> None:
    first = session.prefill(IDS[:4])
    session.prefill(IDS[4:9])
    session.decode(1)
    np.testing.assert_array_equal(first, toy.logits(IDS[:4])[-1])


@pytest.mark.parametrize(
    ("ids", "what", "limit"),
    [
        ([], "the prompt is empty", "at least one token"),
        ([-1], "token id -1 is outside the vocabulary", "0 to 259"),
        ([1, 260], "token id 260 is outside the vocabulary", "0 to 259"),
        ([1.5], "token ids are float64 of shape (1,)", "one row of whole numbers"),
        ([[1, 2]], "token ids are int64 of shape (1, 2)", "one row of whole numbers"),
        ([1] * (CONTEXT + 1), "the text has 49 tokens", "the context of this artifact is 48 tokens"),
    ],
)
@pytest.mark.parametrize("method", ["prefill", "logits"])
def test_refuses_bad_ids(session: Session, method: str, ids: Any, what: str, limit: str) -> None:
    with pytest.raises(UsageError) as caught:
        getattr(session, method)(ids)
    assert (caught.value.what, caught.value.limit) == (what, limit)


def test_refuses_to_overflow_the_cache_and_stays_usable(session: Session, toy: Any) -> None:
    session.prefill([1] * CONTEXT)
    with pytest.raises(UsageError, match="the text has 49 tokens"):
        session.decode(1)
    assert session.position == CONTEXT
    session.reset()
    np.testing.assert_array_equal(session.prefill(IDS), toy.logits(IDS)[-1])


def test_a_decoder_does_not_encode(session: Session) -> None:
    with pytest.raises(UnsupportedError, match="this model is a decoder"):
        session.encode([1])


@pytest.mark.parametrize("threads", [0, -1, 10_000])
def test_refuses_absurd_thread_counts(artifact_path: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=f"{threads} threads were asked for"):
        bitwright.load(artifact_path, threads=threads)


ISOLATION = """
import sys
import bitwright
session = bitwright.load(sys.argv[1], copy_weights=False)
session.logits([1, 2, 3])
session.generate("ab", max_tokens=3)
session.generate(messages=[{"role": "user", "content": "hi"}], max_tokens=3)
heavy = {"tvm", "torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "safetensors"}
print("modules", sorted(heavy & set(sys.modules)))
maps = open("/proc/self/maps").read()
print("compiler", "libtvm_compiler" in maps, "torch", "libtorch" in maps, "runtime", "libtvm_runtime.so" in maps)
print("weights", "weights.safetensors" in maps)
import os
print("affinity", len(os.sched_getaffinity(0)))
import torch
print("torch still imports", torch.ones(1).item())
"""


def test_a_process_that_runs_an_artifact_loads_no_compiler(artifact_path: Path) -> None:
    import os

    done = subprocess.run(
        [sys.executable, "-c", ISOLATION, str(artifact_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "modules []",
        "compiler False torch False runtime True",
        "weights True",
        f"affinity {len(os.sched_getaffinity(0))}",
        "torch still imports 1.0",
    ]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"eos_token_id": [[1]]}, "eos_token_id is"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"do_sample": True, "temperature": "hot"}, "the model recommends an impossible temperature"),
        ({"do_sample": True, "top_p": 7}, "the model recommends an impossible top_p"),
    ],
)
def test_an_impossible_generation_config_is_an_input_error(
    tmp_path: Path, toy: Any, executable: Any, config: dict[str, Any], text: str
) -> None:
    write(tmp_path / "a", toy, executable, generation=config)
    with pytest.raises(InputError, match=text) as caught:
        bitwright.load(tmp_path / "a", threads=1).generate("Once", max_tokens=1)
    assert str(caught.value.where).endswith("generation_config.json")
