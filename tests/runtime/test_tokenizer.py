"""Tokenizing and incremental decoding, on a byte-level, a SentencePiece-like and SmolLM2's own kind of tokenizer."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import InputError, UsageError
from bitwright.runtime.tokenizer import Tokenizer
from tests.runtime.toy_fixtures import byte_tokenizer

WORDS = ["▁", "▁a", "▁the", "a", "b", "!", "é", "▁😀", "\n"]


def sentencepiece_like() -> bytes:
    """Llama 2's decoder: words with a leading block, bytes for everything else, one leading space dropped."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {"<unk>": 0, **{f"<0x{value:02X}>": 1 + value for value in range(256)}}
    vocab |= {word: 257 + number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return str(tokenizer.to_str()).encode()


@lru_cache
def load(kind: str) -> Tokenizer:
    import tempfile

    content = {"bytes": byte_tokenizer, "sentencepiece": sentencepiece_like}[kind]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(content)
        return Tokenizer(path)


def check_stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    pieces = [*(stream.push(number) for number in ids), stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
    return pieces


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(["bytes", "sentencepiece"]), data=st.data())
def test_any_tokens_stream_to_their_whole_text(kind: str, data: st.DataObject) -> None:
    """Also sequences no encoder would make: invalid UTF-8, special tokens in between, bytes that never end."""
    tokenizer = load(kind)
    check_stream(tokenizer, data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=24)))


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(["bytes", "sentencepiece"]), text=st.text(max_size=20))
def test_no_piece_of_a_valid_text_holds_half_a_character(kind: str, text: str) -> None:
    tokenizer = load(kind)
    ids = tokenizer.encode(text)
    pieces = check_stream(tokenizer, ids)
    if "\ufffd" not in tokenizer.decode(ids):
        assert all("\ufffd" not in piece for piece in pieces)


def test_characters_of_several_bytes_come_when_they_are_complete() -> None:
    tokenizer = load("bytes")
    stream = tokenizer.stream()
    assert [stream.push(number) for number in tokenizer.encode("a€b")] == ["a", "", "", "€", "b"]


def test_spaces_between_pieces_survive() -> None:
    tokenizer = load("sentencepiece")
    the, a, blank = (257 + WORDS.index(word) for word in ("▁the", "▁a", "▁"))
    assert check_stream(tokenizer, [the, a, blank, blank, a, the]) == ["the", " a", " ", " ", " a", " the", ""]


def test_special_tokens_are_not_text() -> None:
    tokenizer = load("bytes")
    assert tokenizer.decode([256, *tokenizer.encode("a"), 257]) == "a"
    assert tokenizer.token(256) == "<eos>"
    assert tokenizer.token(10**6) is None


def test_lone_surrogates_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="the text is not valid Unicode"):
        load("bytes").encode("a\udc80")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"model": {"type": "BPE"}}', b'{"version": "1.0", "model": null}']
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Tokenizer(path)
    assert caught.value.what == "the tokenizer cannot be read"
    assert caught.value.where == str(path)


def test_a_missing_tokenizer_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the tokenizer: No such file"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library

    library: Any = Library.from_str(byte_tokenizer().decode())
    library.enable_truncation(4)
    library.enable_padding(length=10)
    path = tmp_path / "tokenizer.json"
    path.write_text(library.to_str())
    assert len(Tokenizer(path).encode("abcdef")) == 6
