"""GGUF files that are broken, or that lie, end in our errors: what is wrong, where, and which limit it broke."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bitwright.errors import InputError, UnsupportedError
from tests.frontend.malformed import expect


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    version: int = 3,
    **lies: int,
) -> bytes:
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("llama")] if pairs is None else pairs
    tensors = tensors or []
    counts = (lies.get("tensor_count", len(tensors)), lies.get("pair_count", len(pairs)))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def tensor(name: str = "w", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "0 bytes"),
        (b"GGUF\x03", "5 bytes"),
        (b"GGML" + gguf()[4:], "it begins with b'GGML'"),
        (gguf(tensor_count=1 << 60), "1152921504606846976 tensors"),
        (gguf(pair_count=1 << 40), "1099511627776 pairs"),
        (gguf(pair_count=2).rstrip(b"\0"), "needs"),
        (gguf([struct.pack("<Q", 1 << 50) + b"x"]), "a key at byte 32 needs 1125899906842624 bytes"),
        (gguf([text("k") + struct.pack("<I", 77)]), "'k' has type 77"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 8, 1 << 50)]), "claims 1125899906842624 strings"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 4, 1 << 50)]), "needs 4503599627370496 bytes"),
        (gguf([text("k") + struct.pack("<IIQ", 9, 9, 1)]), "an array of type 9"),
        (gguf([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<I", 4)]), "is not UTF-8"),
        (gguf([text("general.alignment") + struct.pack("<II", 4, 3)]), "general.alignment is 3"),
        (gguf(tensors=[tensor(shape=(1,) * 5)]), "has rank 5"),
        (gguf(tensors=[tensor(shape=(1 << 40, 1 << 20))], data=bytes(64)), "data at"),
        (gguf(tensors=[tensor()], data=bytes(64)), "data at"),
        (gguf(tensors=[tensor(offset=7)], data=bytes(256)), "data at"),
        (gguf(tensors=[tensor(shape=(31,), kind=2)], data=bytes(64)), "rows of 31 numbers"),
        (gguf(tensors=[tensor(), tensor()], data=bytes(256)), "its name occurs twice"),
        (gguf(pairs=[]), "general.architecture is None"),
        (
            gguf(
                [
                    text("general.architecture") + struct.pack("<I", 8) + text("llama"),
                    text("llama.block_count") + struct.pack("<II", 4, 1000000),
                ]
            ),
            "1000000 layers",
        ),
    ],
)
def test_lying_gguf(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    expect(InputError, tmp_path / "model.gguf", what)


@pytest.mark.parametrize(
    ("content", "what"),
    [(gguf(version=99), "GGUF version 99"), (gguf(tensors=[tensor(kind=250)], data=bytes(256)), "tensor type 250")],
)
def test_gguf_of_another_age(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    expect(UnsupportedError, tmp_path / "model.gguf", what)


def test_gguf_of_an_unknown_architecture(tmp_path: Path) -> None:
    name = text("general.architecture") + struct.pack("<I", 8) + text("perceptron")
    (tmp_path / "model.gguf").write_bytes(gguf([name]))
    error = expect(UnsupportedError, tmp_path / "model.gguf", "not supported by the installed transformers")
    assert error.__cause__ is not None
