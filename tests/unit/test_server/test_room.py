import hashlib

from hypothesis import given
from hypothesis import strategies as st

from delta_updates import FileEntry, VersionManifest, base_hash, tree_hash
from server.registry import PackageRecord
from server.room import Room, disk_bytes

Contents = dict[str, bytes]

_PATHS = st.sampled_from(["base/config.json", "base/model.safetensors", "base/tokenizer.json", "base/extra/one.txt"])
_CONTENTS = st.dictionaries(_PATHS, st.sampled_from([b"", b"a", b"bb", b"c" * 50]), min_size=1)
_LENGTHS = st.integers(min_value=0, max_value=1_000)


def _tree(contents: Contents) -> VersionManifest:
    files = tuple(
        FileEntry(path=path, length=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in sorted(contents.items())
    )
    return VersionManifest(
        model="tiny",
        version=1,
        kind="base",
        base_hash=base_hash(files),
        tree_hash=tree_hash(files),
        files=files,
        created_at="2026-01-02T03:04:05+00:00",
    )


def _package(length: int) -> PackageRecord:
    return PackageRecord(
        model="tiny", version=2, source_version=1, path="p.lamella", length=length, sha256="0" * 64, format=5, facts={}
    )


def _needed_by_a_device(have: Contents, steps: list[tuple[int, Contents]]) -> int:
    """What a device's disk grows by: packages kept until the end, and in each step every file it cannot link."""
    grown = 0
    for length, contents in steps:
        grown += length
        for path, data in contents.items():
            if path not in have or have[path] != data:
                grown += len(data)
        have = contents
    return grown


@given(have=_CONTENTS, steps=st.lists(st.tuples(_LENGTHS, _CONTENTS), min_size=1, max_size=4))
def test_bytes_are_those_that_a_device_would_write(have: Contents, steps: list[tuple[int, Contents]]) -> None:
    packages = [_package(length) for length, _ in steps]
    trees = [_tree(have), *(_tree(contents) for _, contents in steps)]
    assert disk_bytes(packages, trees) == _needed_by_a_device(have, steps)


@given(have=st.none() | _CONTENTS, make=_CONTENTS, length=_LENGTHS, free=st.integers(min_value=0, max_value=1_500))
def test_what_is_missing_is_exactly_enough(have: Contents | None, make: Contents, length: int, free: int) -> None:
    packages, trees = (_package(length),), (None if have is None else _tree(have), _tree(make))
    missing = Room(free_bytes=free).missing(packages, trees)
    assert Room(free_bytes=free + missing).missing(packages, trees) == 0
    if missing:
        assert Room(free_bytes=free + missing - 1).missing(packages, trees) == 1


@given(have=_CONTENTS, make=_CONTENTS, length=_LENGTHS)
def test_a_device_that_has_nothing_needs_no_less(have: Contents, make: Contents, length: int) -> None:
    in_full = disk_bytes((_package(length),), (None, _tree(make)))
    assert in_full == length + sum(map(len, make.values()))
    assert disk_bytes((_package(length),), (_tree(have), _tree(make))) <= in_full


@given(have=_CONTENTS, length=_LENGTHS)
def test_a_device_that_does_not_say_is_never_refused(have: Contents, length: int) -> None:
    assert Room().missing((_package(length),), (None, _tree(have))) == 0


def test_a_file_that_moved_is_written_again() -> None:
    trees = (_tree({"base/config.json": b"12345"}), _tree({"base/moved.json": b"12345"}))
    assert disk_bytes((_package(100),), trees) == 105
