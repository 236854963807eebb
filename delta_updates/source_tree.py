"""The source version as the builder sees it: its files, and which of them a file of the target is most like.

A package makes each file from one file of the source, which need not have the same path: files are renamed, and the
tensors of one file spread over several. Tensors of several files may be put together in one: then it is made from all.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from delta_updates.errors import TensorFileError
from delta_updates.manifest import FileEntry, scan_tree, tree_hash
from delta_updates.package import MAX_JOINED
from delta_updates.reading import RandomReader
from delta_updates.tensor_file import Tensor, TensorFile, read_tensor_file

_Key = tuple[object, ...]


class SourceTree:
    """The files under `folder`; without one there are none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.files = {entry.path: entry for entry in scan_tree(folder)} if folder else {}
        # Backwards, so that of several files with one content the first by path stays: no bytes may depend on luck.
        self._by_hash = {self.files[path].sha256: self.files[path] for path in sorted(self.files, reverse=True)}

    @property
    def hash(self) -> str | None:
        """The tree hash; None without a folder."""
        return tree_hash(self.files.values()) if self.folder else None

    def path_of(self, entry: FileEntry) -> Path:
        """Return where one of its files lies."""
        return (self.folder or Path()) / entry.path

    def equal_of(self, entry: FileEntry) -> FileEntry | None:
        """Return a file of the same content, the one of the same path if it can be."""
        twin = self.files.get(entry.path)
        like = twin if twin and twin.sha256 == entry.sha256 else self._by_hash.get(entry.sha256)
        return like if like and like.length == entry.length else None

    def layout_of(self, entries: Sequence[FileEntry]) -> TensorFile:
        """Return where the tensors of some of its files lie, which count as one file."""
        first = self._layouts[entries[0].path]
        tensors, start = list(first.tensors), entries[0].length
        for entry in entries[1:]:
            tensors += [replace(one, offset=one.offset + start) for one in self._layouts[entry.path].tensors]
            start += entry.length
        return TensorFile(first.values_offset, tuple(tensors))

    def like_tensors(self, entry: FileEntry, layout: TensorFile) -> tuple[FileEntry, ...]:
        """Return the file that has most of these tensors, and those that have the others; empty where none has any.

        Tensors are known by name, or else by shape; of equal files that of the same path is taken.
        """
        named: Counter[str] = Counter()
        shaped: Counter[str] = Counter()
        for tensor in layout.tensors:
            for counts, index, key in (
                (named, self._by_tensor, _named(tensor)),
                (shaped, self._by_shape, _shaped(tensor)),
            ):
                for path in index.get(key, ()):
                    counts[path] += tensor.length
        chosen = max(
            sorted(self._layouts),
            key=lambda path: (named[path], path == entry.path, shaped[path]),
            default=None,
        )
        if chosen is None:
            return ()
        # Shapes alone may be alike by chance: a device should not need a file for a tensor or two.
        is_like = named[chosen] or chosen == entry.path or 2 * shaped[chosen] >= entry.length
        return (self.files[chosen], *self._joined(chosen, layout)) if is_like else ()

    def _joined(self, chosen: str, layout: TensorFile) -> list[FileEntry]:
        """Return the other files that have tensors which the chosen one lacks, as when shards are put together."""
        names = {tensor.name for tensor in self._layouts[chosen].tensors}
        lacking = [tensor for tensor in layout.tensors if tensor.name not in names]
        paths = {min(self._by_tensor[_named(tensor)]) for tensor in lacking if _named(tensor) in self._by_tensor}
        return [self.files[path] for path in sorted(paths)[:MAX_JOINED]]

    def like_bytes(self, entry: FileEntry) -> FileEntry | None:
        """Return the file of the same path or, when there is none, the first that has its name in another folder."""
        if entry.path in self.files:
            return self.files[entry.path]
        name = PurePosixPath(entry.path).name
        return next((self.files[path] for path in sorted(self.files) if PurePosixPath(path).name == name), None)

    @cached_property
    def _layouts(self) -> dict[str, TensorFile]:
        found = {path: layout_at(self.path_of(entry)) for path, entry in self.files.items()}
        return {path: layout for path, layout in found.items() if layout is not None}

    @cached_property
    def _by_tensor(self) -> dict[_Key, set[str]]:
        return self._index(_named)

    @cached_property
    def _by_shape(self) -> dict[_Key, set[str]]:
        return self._index(_shaped)

    def _index(self, key_of: Callable[[Tensor], _Key]) -> dict[_Key, set[str]]:
        index: dict[_Key, set[str]] = {}
        for path, layout in self._layouts.items():
            for tensor in layout.tensors:
                index.setdefault(key_of(tensor), set()).add(path)
        return index


def layout_at(path: Path) -> TensorFile | None:
    """Return where the tensors of a file lie; None when it is not a well-formed safetensors file."""
    with RandomReader(path) as reader:
        try:
            return read_tensor_file(reader)
        except TensorFileError:
            return None


def _named(tensor: Tensor) -> _Key:
    return tensor.name, tensor.dtype, tensor.shape


def _shaped(tensor: Tensor) -> _Key:
    return tensor.dtype, tensor.shape
