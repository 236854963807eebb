"""The container against damage and malice: whatever the bytes, a DeltaError answers, soon and in little memory."""

import hashlib
import json
import shutil
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulators.version_trees import source_and_target, write_tree

from delta_updates import (
    DeltaError,
    PackageFormatError,
    apply_package,
    build_package,
    scan_tree,
    tree_hash,
    verify_tree,
)
from delta_updates.codecs import CodecName, ElementKind, Encoded
from delta_updates.codecs.frames import pack
from delta_updates.codecs.layouts import Layout
from delta_updates.package import Part, Record

_PRELUDE = struct.Struct("<8sII32s")
_HEAD = struct.Struct("<BBBBIQII")


def sealed(header: bytes, records: list[bytes]) -> bytes:
    """Return a package whose every hash is right, whatever it says."""
    start = _PRELUDE.pack(b"\x89LMPKG\r\n", 5, len(header), hashlib.sha256(header).digest())
    return start + header + b"".join(record + hashlib.sha256(record).digest()[:16] for record in records)


def opened(package: bytes) -> tuple[dict, list[bytes]]:
    """Return the header and the records without digests, but with hashes of what they make; nothing is checked."""
    length = _PRELUDE.unpack_from(package)[2]
    header = json.loads(package[_PRELUDE.size : _PRELUDE.size + length])
    position, records = _PRELUDE.size + length, []
    while position < len(package):
        parts, frame = (_HEAD.unpack_from(package, position)[index] for index in (4, 7))
        end = position + _HEAD.size + 16 * parts + frame + 16
        records.append(package[position:end])
        position = end + 16
    return header, records


def canonical(header: object) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def with_true_hash(header: dict) -> dict:
    """Return the header with the target_hash that its files give."""
    lines = "".join(f"{f['file']['path']}\0{f['file']['length']}\0{f['file']['sha256']}\n" for f in header["files"])
    return {**header, "target_hash": hashlib.sha256(lines.encode()).hexdigest()}


class Bench:
    """Applies bytes as a package to a fixed source."""

    def __init__(self, folder: Path) -> None:
        old, new = source_and_target()
        self.folder = folder
        self.source = write_tree(folder / "v1", old)
        self.target = write_tree(folder / "v2", new)
        self.hash = build_package(self.source, self.target, folder / "good").target_hash
        self.good = (folder / "good").read_bytes()
        self.slots = folder / "slots"
        self.slots.mkdir()

    def apply(self, raw: bytes, expected: str | None = None) -> Path:
        (self.folder / "package").write_bytes(raw)
        slot = self.slots / "b"
        options = {"expected_target_hash": expected or self.hash, "max_target_bytes": 1 << 40}
        apply_package(self.source, self.folder / "package", slot, **options)
        return slot

    def refuse(self, raw: bytes, expected: str | None = None, match: str | None = None) -> None:
        with pytest.raises(DeltaError, match=match):
            self.apply(raw, expected)
        assert list(self.slots.iterdir()) == []

    def refuse_header(self, header: dict, match: str | None = None) -> None:
        header = with_true_hash(header)
        self.refuse(sealed(canonical(header), opened(self.good)[1]), header["target_hash"], match)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_the_forger_of_these_tests_can_write_a_good_package(bench: Bench) -> None:
    header, records = opened(bench.good)
    assert sealed(canonical(with_true_hash(header)), records) == bench.good
    slot = bench.apply(bench.good)
    verify_tree(slot, scan_tree(bench.target))
    for path in sorted(slot.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    slot.rmdir()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damaged_byte_is_found(bench: Bench, data: st.DataObject) -> None:
    raw = bytearray(bench.good)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    bench.refuse(bytes(raw))


@settings(max_examples=100, deadline=None)
@given(raw=st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda raw: sealed(raw, []))))
def test_any_bytes_are_refused(bench: Bench, raw: bytes) -> None:
    bench.refuse(raw)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
@pytest.mark.slow
def test_forged_records_with_right_digests_never_do_harm(bench: Bench, data: st.DataObject) -> None:
    header, records = opened(bench.good)
    index = data.draw(st.integers(0, len(records) - 1))
    record = bytearray(records[index])
    action = data.draw(st.sampled_from(["head", "body", "drop", "twice", "swap"]))
    if action == "head":
        fields = list(_HEAD.unpack_from(record))
        place = data.draw(st.integers(0, 7))
        limit = {4: 2**32, 5: 2**64, 6: 2**32, 7: 2**32}.get(place, 256)
        fields[place] = data.draw(st.one_of(st.integers(0, min(limit, 300) - 1), st.integers(0, limit - 1)))
        _HEAD.pack_into(record, 0, *fields)
    elif action == "body" and len(record) > _HEAD.size:
        for _ in range(data.draw(st.integers(1, 4))):
            record[data.draw(st.integers(_HEAD.size, len(record) - 1))] = data.draw(st.integers(0, 255))
    forged = [*records[:index], bytes(record), *records[index + 1 :]]
    if action == "drop":
        del forged[index]
    elif action == "twice":
        forged.insert(index, bytes(record))
    elif action == "swap":
        forged.reverse()
    if forged == records:
        return
    try:
        slot = bench.apply(sealed(canonical(header), forged))
    except DeltaError:
        assert list(bench.slots.iterdir()) == []
    else:
        # A change without effect (a bit that padding ignores) may pass, but only to the exact target.
        verify_tree(slot, scan_tree(bench.target))
        slot.rename(bench.folder / f"harmless-{hashlib.sha256(bytes(record)).hexdigest()}")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_forged_headers_with_right_hashes_never_do_harm(bench: Bench, data: st.DataObject) -> None:
    header, records = opened(bench.good)
    packaged = header["files"][data.draw(st.integers(0, len(header["files"]) - 1))]
    entry = packaged[data.draw(st.sampled_from(["file", "source"]))] or packaged["file"]
    junk = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20))
    key, value = data.draw(
        st.one_of(
            st.tuples(st.just("length"), st.one_of(st.integers(0, 2**46), junk)),
            st.tuples(st.just("path"), st.one_of(st.sampled_from(_BAD_PATHS), junk)),
            st.tuples(st.just("sha256"), st.one_of(st.just("0" * 64), junk)),
            st.tuples(st.just("method"), st.sampled_from(["same", "full", "tensors", "patch", "run", 1])),
        )
    )
    (packaged if key == "method" else entry)[key] = value
    forged = with_true_hash(header)
    if forged == opened(bench.good)[0]:
        return
    try:
        slot = bench.apply(sealed(canonical(forged), records), forged["target_hash"])
    except DeltaError:
        assert list(bench.slots.iterdir()) == []
    else:
        # Another name that is allowed makes another package, not a broken one: what it says is what it makes.
        made = tree_hash(scan_tree(slot))
        shutil.rmtree(slot)
        assert made == forged["target_hash"]
        assert key == "path"


_BAD_PATHS = [
    "../outside", "base/../../outside", "/etc/cron.d/x", "", ".", "a//b", "a/./b", "a/", "C:/x", "c:x", "a\\..\\b",
    "a\0b", "a\nb", "base/\u202etxt", "x" * 256,
]  # fmt: skip


@pytest.mark.parametrize("path", _BAD_PATHS)
@pytest.mark.parametrize("side", ["file", "source"])
def test_paths_that_lead_elsewhere_are_refused(bench: Bench, path: str, side: str) -> None:
    header, _ = opened(bench.good)
    packaged = next(item for item in header["files"] if item["method"] == "same")
    packaged[side] = {**packaged[side], "path": path}
    header["files"].sort(key=lambda item: item["file"]["path"])
    bench.refuse_header(header)


@pytest.mark.parametrize("path", ["base/config.json", "BASE/Config.json", "base/config.json/x", "base"])
def test_names_that_collide_are_refused(bench: Bench, path: str) -> None:
    header, _ = opened(bench.good)
    twin = next(item for item in header["files"] if item["file"]["path"] == "base/config.json")
    header["files"].append({**twin, "file": {**twin["file"], "path": path}})
    header["files"].sort(key=lambda item: item["file"]["path"])
    bench.refuse_header(header, "twice|both a file and a folder")


def test_a_name_listed_twice_in_the_header_is_refused(bench: Bench) -> None:
    header, records = opened(bench.good)
    raw = canonical(header).replace(b'{"files":', b'{"files":[],"files":', 1)
    bench.refuse(sealed(raw, records), match="canonically")


def test_half_a_character_in_a_name_is_refused(bench: Bench) -> None:
    header, records = opened(bench.good)
    bench.refuse(sealed(canonical(header).replace(b"config.json", b"\\ud800"), records))


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"files":' * 50_000, b"9" * 100_000])
def test_json_that_nests_or_counts_too_far_is_refused(bench: Bench, raw: bytes) -> None:
    bench.refuse(sealed(raw, []))


def test_a_header_longer_than_allowed_is_not_read(bench: Bench) -> None:
    start = _PRELUDE.pack(b"\x89LMPKG\r\n", 2, 2**32 - 1, b"\0" * 32)
    bench.refuse(start, match="at most")


def test_a_record_knows_its_length() -> None:
    record = Record(
        CodecName.DIFFERENCE, ElementKind.FLOAT16, 8, (Part(0, 6), Part(9, 2)), Encoded(Layout.CLASSES, 9, b"12345")
    )
    assert record.length_in_package == len(record.to_bytes())


def test_another_format_is_refused(bench: Bench) -> None:
    bench.refuse(bench.good[:8] + b"\6" + bench.good[9:], match="format 6")
    # An old reader would misread what only later formats have.
    header, records = opened(bench.good)
    old = b"".join(record[:-16] + hashlib.sha256(record[:-16]).digest()[:16] for record in records)
    start = _PRELUDE.pack(b"\x89LMPKG\r\n", 1, len(canonical(header)), hashlib.sha256(canonical(header)).digest())
    bench.refuse(start + canonical(header) + old, match="its format does not have")


def _forged(record: Record) -> bytes:
    """Return a record without its digest; what it says that it makes is wrong."""
    return replace(record, made=bytes(16)).to_bytes()[:-16]


def _package_of(content: bytes, record: Record) -> tuple[bytes, str]:
    entry = {"length": len(content), "path": "a", "sha256": hashlib.sha256(content).hexdigest()}
    return _package_with(entry, [record])


def _package_with(entry: dict, records: list[Record]) -> tuple[bytes, str]:
    files = [{"file": entry, "method": "full", "source": None}]
    header = with_true_hash({"files": files, "source_hash": None})
    return sealed(canonical(header), [_forged(record) for record in records]), header["target_hash"]


def _full(length: int, plain_length: int, frame: bytes) -> Record:
    return Record(CodecName.FULL, ElementKind.BYTES, length, (), Encoded(Layout.RAW, plain_length, frame))


def test_a_zstd_bomb_is_refused_in_little_memory(bench: Bench) -> None:
    packer = zstandard.ZstdCompressor().compressobj(size=256 << 20)
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(256)), packer.flush()])
    lies = [
        _full(1 << 20, 1 << 20, bomb),
        _full(1 << 20, 1 << 20, zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * (64 << 20))),
        _full(256 << 20, 256 << 20, bomb),
        _full(1 << 20, 256 << 20, bomb),
    ]
    tracemalloc.start()
    try:
        for record in lies:
            bench.refuse(*_package_with({"length": record.length, "path": "a", "sha256": "0" * 64}, [record]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    "frame",
    [
        pack([b"four"]) + b"x",
        pack([b"four"]) + pack([b""]),
        pack([b"five!"]),
        pack([b"fou"]),
        pack([b"four"])[:-1],
        b"",
        b"four",
        zstandard.ZstdCompressor(write_content_size=False).compress(b"four"),
    ],
    ids=["byte after", "frame after", "too long", "too short", "cut", "empty", "no frame", "no size"],
)
def test_frames_hold_exactly_what_is_said(bench: Bench, frame: bytes) -> None:
    bench.refuse(*_package_of(b"four", _full(4, 4, frame)))


@pytest.mark.parametrize(
    ("codec", "kind", "parts"),
    [
        (CodecName.SAME, ElementKind.BYTES, (Part(2**64 - 4, 4),)),
        (CodecName.SAME, ElementKind.BYTES, (Part(0, 0), Part(0, 4))),
        (CodecName.DIFFERENCE, ElementKind.FLOAT16, (Part(0, 2),)),
        (CodecName.DIFFERENCE, ElementKind.FLOAT16, (Part(0, 1), Part(0, 3))),
        (CodecName.DIFFERENCE, ElementKind.WORDS2, (Part(0, 4),)),
        (CodecName.PATCH, ElementKind.BYTES, (Part(0, 4),)),
    ],
)
def test_sources_are_read_only_where_they_are(
    bench: Bench, codec: CodecName, kind: ElementKind, parts: tuple[Part, ...]
) -> None:
    header, _ = opened(bench.good)
    packaged = next(item for item in header["files"] if item["method"] == "tensors")
    packaged["file"] = {"length": 4, "path": "a", "sha256": hashlib.sha256(b"four").hexdigest()}
    header = with_true_hash({**header, "files": [packaged]})
    empty = Encoded(Layout.RAW, 0, b"") if codec is CodecName.SAME else Encoded(Layout.BYTES, 4, pack([b"\0" * 4]))
    record = Record(codec, kind, 4, parts, empty)
    bench.refuse(sealed(canonical(header), [_forged(record)]), header["target_hash"])


def test_a_target_hash_of_other_files_is_refused(bench: Bench) -> None:
    header, records = opened(bench.good)
    header["target_hash"] = tree_hash(())
    bench.refuse(sealed(canonical(header), records), header["target_hash"], "does not follow")


def test_errors_say_that_the_bytes_are_bad(bench: Bench) -> None:
    with pytest.raises(PackageFormatError, match="damaged"):
        bench.apply(bench.good[:-1] + bytes([bench.good[-1] ^ 1]))
