"""Single files where packages are about folders: a file is a folder that holds it under a fixed name."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from delta_updates import work_folder
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from delta_updates.package import PackagedFile

_STEM = "single-file"
T = TypeVar("T")


def as_tree(
    path: Path, stack: ExitStack, *, like: Path | None = None, named: Sequence[PackagedFile] | None = None
) -> Path:
    """A folder is itself; a file becomes the only one of a temporary folder, without copying it where links work.

    Args:
        path: Folder or file.
        stack: Removes the temporary folder at its end.
        like: The other version, which must be of the same sort.
        named: The files of a package, to take the name from.

    Raises:
        ConfigurationError: A folder beside a file.
    """
    if like is not None and like.is_dir() != path.is_dir():
        raise ConfigurationError(f"{like} and {path}: give two folders or two files.")
    if path.is_dir():
        return path
    if named is not None and not is_single_file(named):
        raise ConfigurationError(f"This package is for a folder, and {path} is a file.")
    name = f"{_STEM}{path.suffix}" if named is None else (named[0].source or named[0].file).path
    # Beside the file a link works; where nothing may be written there, it is copied elsewhere.
    beside = path.absolute().parent if os.access(path.absolute().parent, os.W_OK) else None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".lamella-", dir=beside)))
    try:
        os.link(path, folder / name)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, folder / name)
    return folder


def is_single_file(files: Sequence[PackagedFile]) -> bool:
    """Whether a package was built from single files."""
    return len(files) == 1 and Path(files[0].file.path).stem == _STEM


def unwrap(out: Path, make: Callable[[Path], T]) -> T:
    """Let `make` make a folder with one file, and move the file to `out`, which must not exist.

    The folder lies beside `out` under a name of its own, so that a `make` that is cut off finds its work again.

    Raises:
        ConfigurationError: `out` exists.
    """
    if out.exists():
        raise ConfigurationError(f"{out} exists already; choose another --out.")
    scratch = out.absolute().with_name(f".{out.name}.lamella")
    folder = scratch / "tree"
    scratch.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # whole, but cut off before it was moved
    try:
        result = make(folder)
        [file] = folder.iterdir()
        # An unchanged file is a link to the source: what the caller gets must be a file of its own.
        if file.stat().st_nlink > 1:
            shutil.copyfile(file, scratch / "own")
            file = scratch / "own"
        file.rename(out)
    finally:
        if not work_folder(folder).exists():
            shutil.rmtree(scratch)
    return result
