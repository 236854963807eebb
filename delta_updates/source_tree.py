"""The source version as the builder sees it: its files, and which of them a file of the target is most like.

A package makes each file from one file of the source, which need not have the same path: files are renamed, and the
tensors of one file spread over several.
"""

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath

from delta_updates.errors import TensorFileError
from delta_updates.manifest import FileEntry, scan_tree, tree_hash
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

    def layout_of(self, entry: FileEntry) -> TensorFile | None:
        """Return where the tensors of one of its files lie; None when it has none."""
        return self._layouts.get(entry.path)

    def like_tensors(self, entry: FileEntry, layout: TensorFile) -> FileEntry | None:
        """Return the file that has most of these tensors, by name or else by shape; of equals that of the same path."""
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
            return None
        # Shapes alone may be alike by chance: a device should not need a file for a tensor or two.
        is_like = named[chosen] or chosen == entry.path or 2 * shaped[chosen] >= entry.length
        return self.files[chosen] if is_like else None

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
