"""The header reader agrees with the reference implementation on good files, and refuses the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from simulators.version_trees import safetensors_file

from delta_updates import TensorFileError
from delta_updates.reading import RandomReader
from delta_updates.tensor_file import MAX_HEADER_BYTES, TensorFile, read_tensor_file


def _read(folder: Path, raw: bytes) -> TensorFile:
    path = folder / "file"
    path.write_bytes(raw)
    with RandomReader(path) as reader:
        return read_tensor_file(reader)


def _file(header: object, values: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


def _entry(dtype: object = "F16", shape: object = (2,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_places_of_tensors(tmp_path: Path) -> None:
    raw = safetensors_file({"a": ("F16", np.ones((2, 3))), "e": ("F32", np.ones((0,))), "b": ("BF16", np.ones(5))})
    layout = _read(tmp_path, raw)
    assert [(tensor.name, tensor.dtype, tensor.shape, tensor.length) for tensor in layout.tensors] == [
        ("a", "F16", (2, 3), 12),
        ("e", "F32", (0,), 0),
        ("b", "BF16", (5,), 10),
    ]
    assert layout.values_offset == layout.tensors[0].offset == len(raw) - 22


def test_four_bit_values_and_no_tensors(tmp_path: Path) -> None:
    assert _read(tmp_path, _file({"x": _entry("F4", [6], [0, 3])}, b"abc")).tensors[0].length == 3
    assert _read(tmp_path, _file({"__metadata__": {"a": "b"}})).tensors == ()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"1234567",
        (2**63).to_bytes(8, "little") + b"{}",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(100),
        _file(b"[]"),
        _file(b" {}"),
        _file(b"\xff{}"),
        _file(b"[" * 100_000),
        _file(b'{"a":' + b"9" * 10_000 + b"}"),
        _file({}, b"extra"),
        _file({"x": _entry()}, b"123"),
        _file({"x": _entry()}, b"12345"),
        _file({"x": _entry("F17")}, b"1234"),
        _file({"x": _entry(["F16"])}, b"1234"),
        _file({"x": _entry(shape=[3])}, b"1234"),
        _file({"x": _entry(shape=[-2])}, b"1234"),
        _file({"x": _entry(shape=[2.0])}, b"1234"),
        _file({"x": _entry(shape=[True, 2])}, b"1234"),
        _file({"x": _entry(shape=[2**62, 4, 0, 2**63])}, b"1234"),
        _file({"x": _entry(shape=[1] * 33 + [2])}, b"1234"),
        _file({"x": _entry(shape="2")}, b"1234"),
        _file({"x": _entry(offsets=[4, 0])}, b"1234"),
        _file({"x": _entry(offsets=[0])}, b"1234"),
        _file({"x": _entry(offsets=[2**64, 2**64 + 4])}, b"1234"),
        _file({"x": _entry(), "y": _entry()}, b"1234"),
        _file({"x": _entry(), "y": _entry(offsets=[2, 6])}, b"123456"),
        _file({"x": _entry(), "y": _entry(offsets=[6, 10])}, b"1234567890"),
        _file({"x": _entry(offsets=[2, 6])}, b"123456"),
        _file({"x": {**_entry(), "more": 1}}, b"1234"),
        _file({"x": 5}, b"1234"),
        _file(b'{"x":%b,"x":%b}' % ((json.dumps(_entry()).encode(),) * 2), b"1234"),
        _file({"x": _entry("F4", [3], [0, 1])}, b"a"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(TensorFileError):
        _read(tmp_path, raw)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_never_more_lenient_than_the_reference(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(safetensors_file({"a": ("F16", np.ones(3)), "b": ("I32", np.arange(4))}))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        layout = _read(tmp_path, bytes(raw))
    except TensorFileError:
        return
    try:
        reference = dict(deserialize(bytes(raw)))
    except SafetensorError:
        # We do not look into __metadata__, because nothing is made of it.
        assert b"__metadata__" in raw
        return
    assert {tensor.name: tensor.length for tensor in layout.tensors} == {
        name: len(entry["data"]) for name, entry in reference.items()
    }
