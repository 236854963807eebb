import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import CheckpointError
from model.files import read_text, replace_durably, write_text
from model.tensor_file import TensorFile, stream_tensors, write_tensors

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "single": torch.tensor(3.25),
    "empty": torch.zeros(0, 4),
}


def test_round_trip_and_the_library_agrees(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, metadata={"format": "pt"})

    with TensorFile(path) as file:
        file.require_shapes({name: tuple(t.shape) for name, t in TENSORS.items()})
        for name, tensor in TENSORS.items():
            assert torch.equal(file.read(name), tensor)
            assert file.read(name).dtype == tensor.dtype
    for name, tensor in safetensors.torch.load_file(path).items():
        assert torch.equal(tensor, TENSORS[name])


def test_same_tensors_give_same_bytes(tmp_path: Path) -> None:
    for name, order in (("a", sorted(TENSORS)), ("b", sorted(TENSORS, reverse=True))):
        write_tensors(tmp_path / name, {key: TENSORS[key] for key in order}, metadata={})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def header_file(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": ENTRY}, b"abc"),  # shorter than promised
        ({"a": ENTRY}, b"abcde"),  # bytes nobody owns
        ({"a": ENTRY, "b": ENTRY}, b"abcd"),  # overlapping
        ({"a": ENTRY | {"data_offsets": [4, 8]}}, b"abcdefgh"),  # a hole in front
        ({"a": ENTRY | {"shape": [2]}}, b"abcd"),
        ({"a": ENTRY | {"shape": [-1, -1]}}, b"abcd"),
        ({"a": ENTRY | {"shape": [True]}}, b"abcd"),
        ({"a": ENTRY | {"shape": 1}}, b"abcd"),
        ({"a": ENTRY | {"dtype": "I64"}}, b"abcd"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, b"abcd"),
        ({"a": ENTRY | {"code": "x"}}, b"abcd"),
        ({"a": ENTRY | {"data_offsets": [0, 4, 4]}}, b"abcd"),
        ({"a": None}, b""),
        (["a"], b""),
        (b'{"a":%b,"a":%b}' % ((json.dumps(ENTRY).encode(),) * 2), b"abcd"),
        (b"[" * 100_000, b""),
        (b"\xff", b""),
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, header: object, data: bytes) -> None:
    with pytest.raises(CheckpointError, match="no sound safetensors file"):
        TensorFile(header_file(tmp_path / "x", header, data))


def test_a_header_longer_than_the_file_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header claims"):
        TensorFile(tmp_path / "x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200), cut=st.integers(0, 200), at=st.integers(0, 200), value=st.integers(0, 255))
def test_damage_is_an_error_or_harmless(tmp_path: Path, raw: bytes, cut: int, at: int, value: int) -> None:
    path = tmp_path / "x"
    write_tensors(path, TENSORS, metadata={})
    sound = bytearray(path.read_bytes())
    for damaged in (raw, sound[:cut], sound[:at] + bytes([value]) + sound[at + 1 :]):
        path.write_bytes(damaged)
        try:
            with TensorFile(path) as file:
                for name in file.tensors:
                    file.read(name)
        except CheckpointError:
            pass


def test_shapes_that_differ_name_the_tensor(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", TENSORS, metadata={})
    with TensorFile(tmp_path / "x") as file:
        with pytest.raises(CheckpointError, match=r"half has shape \[2, 3\]"):
            file.require_shapes({n: (9,) if n == "half" else tuple(t.shape) for n, t in TENSORS.items()})
        with pytest.raises(CheckpointError, match=r"missing ghost, unexpected brain, empty, half and 1 more"):
            file.require_shapes({"ghost": (1,)})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="free disk space"):
        replace_durably(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_text_files_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_text(tmp_path / "x", max_bytes=5) == "12345"
    with pytest.raises(CheckpointError, match="larger than 4"):
        read_text(tmp_path / "x", max_bytes=4)
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_text(tmp_path / "x", max_bytes=5)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_text(tmp_path / "absent", max_bytes=5)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.text("aZ09._-é", min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    ),
    order=st.randoms(use_true_random=False),
)
def test_pieces_in_any_order_make_the_librarys_file(tmp_path: Path, shapes: dict, order: object) -> None:
    tensors = {name: torch.arange(math.prod(shape)).to(kind).reshape(shape) for name, (kind, shape) in shapes.items()}
    pieces = {name: [tensor] if tensor.ndim == 0 else list(tensor.split(2)) for name, tensor in tensors.items()}
    turns = [name for name, parts in pieces.items() for _ in parts]
    order.shuffle(turns)
    write_tensors(tmp_path / "library", tensors, metadata={"format": "pt"})
    stored = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_tensors(tmp_path / "ours", stored, ((name, pieces[name].pop(0)) for name in turns))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()


@pytest.mark.parametrize("rows", [1, 3])
def test_pieces_that_do_not_make_up_a_tensor_leave_no_file(tmp_path: Path, rows: int) -> None:
    with pytest.raises(ValueError, match="bytes than"):
        stream_tensors(tmp_path / "x", {"w": (torch.float32, (2, 4))}, [("w", torch.zeros(rows, 4))])
    assert list(tmp_path.iterdir()) == []
