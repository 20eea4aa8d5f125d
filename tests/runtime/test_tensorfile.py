"""The weights file: aligned, readable by the safetensors library, mapped without copies, strict about lies."""

from __future__ import annotations

import io
import json
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.errors import InputError
from bitwright.runtime.artifact.tensorfile import ALIGNMENT, DTYPES, write_tensors
from bitwright.runtime.artifact.tensormap import map_tensors

SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def tensors_of(draw: list[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(len(draw))
    return {
        f"tensor.{number}": random.integers(0, 2, shape).astype(dtype) for number, (dtype, shape) in enumerate(draw)
    }


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    with path.open("wb") as file:
        write_tensors(file, tensors)
    return path


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPES.values())), SHAPES), max_size=6), st.booleans())
def test_round_trip_through_our_reader_and_the_safetensors_library(
    tmp_path_factory: pytest.TempPathFactory, draw: list[tuple[str, tuple[int, ...]]], copy: bool
) -> None:
    from safetensors.numpy import load_file

    tensors = tensors_of(draw)
    path = write(tmp_path_factory.mktemp("weights") / "w.safetensors", tensors)
    ours, theirs = map_tensors(path, copy=copy), load_file(path)
    assert list(ours) == list(tensors)
    for name, expected in tensors.items():
        assert ours[name].dtype == theirs[name].dtype == expected.dtype
        np.testing.assert_array_equal(ours[name], expected)
        np.testing.assert_array_equal(theirs[name], expected)
        assert ours[name].ctypes.data % ALIGNMENT == 0
    assert set(theirs) - set(ours) <= {name for name in theirs if name.startswith(".padding.")}
    assert path.stat().st_size % ALIGNMENT == 0


def test_equal_tensors_give_equal_bytes() -> None:
    def content() -> bytes:
        file = io.BytesIO()
        write_tensors(file, {"b": np.arange(5), "a": np.ones((3, 7), "float16")})
        return file.getvalue()

    assert content() == content()


def test_order_is_the_callers_even_for_transposed_views(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype="int32").reshape(3, 4)
    found = map_tensors(write(tmp_path / "w", {"z": matrix.T, "a": matrix.astype(">i4")}))
    assert list(found) == ["z", "a"]
    np.testing.assert_array_equal(found["z"], matrix.T)
    np.testing.assert_array_equal(found["a"], matrix)


def test_reading_maps_and_writing_to_a_view_leaves_the_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "w", {"a": np.zeros(64, "uint8")})
    before = path.read_bytes()
    view = map_tensors(path)["a"]
    assert not view.flags.owndata
    view[:] = 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", [".padding.0", "__metadata__"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="reserved"):
        write_tensors(io.BytesIO(), {name: np.zeros(1)})


class _Computed:
    """A tensor that becomes an array when it is written."""

    def __init__(self, make: Callable[[], np.ndarray], shape: tuple[int, ...]) -> None:
        self.make, self.shape = make, shape
        self.dtype, self.nbytes = np.dtype("float32"), 4 * int(np.prod(shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.make()


def test_computed_tensors_are_arrays_one_at_a_time() -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def make() -> np.ndarray:
        assert all(reference() is None for reference in made)
        array = np.full((5, 7), float(len(made)), dtype="float32")
        made.append(weakref.ref(array))
        return array

    lazy, eager = io.BytesIO(), io.BytesIO()
    write_tensors(lazy, {str(i): _Computed(make, (5, 7)) for i in range(4)})
    write_tensors(eager, {str(i): np.full((5, 7), float(i), dtype="float32") for i in range(4)})
    assert len(made) == 4 and lazy.getvalue() == eager.getvalue()


def test_a_tensor_that_is_not_what_it_announced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor 'a' is float32 \(2,\), announced as float32 \(3,\)"):
        write_tensors(io.BytesIO(), {"a": _Computed(lambda: np.zeros(2, "float32"), (3,))})


def test_types_the_format_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="no type complex64"):
        write_tensors(io.BytesIO(), {"a": np.zeros(1, "complex64")})


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file_with(header: Any, data: int = 16, length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


MALFORMED = {
    "empty": (b"", "the weights file is truncated"),
    "seven bytes": (b"\0" * 7, "the weights file is truncated"),
    "huge header": (file_with({}, length=2**63), "declares a header of 9223372036854775808 bytes"),
    "header longer than the file": (file_with({}, 0, length=1000), "declares a header of 1000 bytes"),
    "not JSON": (file_with("{oops"), "the header of the weights file is not JSON"),
    "not UTF-8": (struct.pack("<Q", 2) + b"\xff\xff", "the header of the weights file is not JSON"),
    "deep JSON": (file_with("[" * 100_000), "the header of the weights file is not JSON"),
    "duplicate name": (file_with('{"a": 1, "a": 2}'), "the header of the weights file is not JSON"),
    "a list": (file_with([]), "the header of the weights file is not a JSON object"),
    "entry is no object": (file_with({"a": 3}), "it must have dtype, shape and data_offsets"),
    "entry lacks a key": (file_with({"a": {"dtype": "F32"}}), "it must have dtype, shape and data_offsets"),
    "unknown dtype": (file_with({"a": entry(dtype="F7")}), "unknown dtype 'F7'"),
    "dtype is a list": (file_with({"a": entry(dtype=["F32"])}), "unknown dtype"),
    "negative shape": (file_with({"a": entry(shape=(-4,))}), "must be lists of whole numbers"),
    "boolean shape": (file_with({"a": entry(shape=(True,))}), "must be lists of whole numbers"),
    "float offsets": (file_with({"a": entry(offsets=(0, 16.0))}), "must be lists of whole numbers"),
    "three offsets": (file_with({"a": entry(offsets=(0, 16, 16))}), "must be lists of whole numbers"),
    "too many dimensions": (file_with({"a": entry(shape=(1,) * 70)}), "at most 8 dimensions"),
    "overflowing shape": (file_with({"a": entry(shape=(2**62, 4, 0))}), "at most 8 dimensions of at most"),
    "shape and size differ": (file_with({"a": entry(shape=(5,))}), "takes 20 bytes, data_offsets span 16"),
    "ends before it starts": (file_with({"a": entry(offsets=(16, 0))}), "takes 16 bytes, data_offsets span -16"),
    "beyond the file": (file_with({"a": entry(shape=(400,), offsets=(0, 1600))}), "the weights file has"),
    "trailing data": (file_with({"a": entry()}, data=17), "the weights file has"),
    "truncated data": (file_with({"a": entry()}, data=15), "the weights file has"),
    "hole": (file_with({"a": entry(), "b": entry(offsets=(64, 80))}, data=80), "the tensor starts at 64"),
    "overlap": (file_with({"a": entry(), "b": entry(offsets=(8, 24))}, data=24), "the tensor starts at 8"),
    "not aligned": (file_with({"a": entry(), "b": entry(offsets=(16, 32))}, data=32), "the tensor starts at byte"),
}


@pytest.mark.parametrize("name", sorted(MALFORMED))
def test_a_malformed_file_is_refused(tmp_path: Path, name: str) -> None:
    content, what = MALFORMED[name]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        map_tensors(path)
    assert what in f"{caught.value.what} {caught.value.limit}"
    assert str(path) in str(caught.value)
    assert caught.value.remedy
