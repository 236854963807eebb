"""SHA-256 of files that were hashed a moment ago: one update reads a large file once, and while it waits anyway."""

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from delta_updates.errors import DeltaError
from delta_updates.reading import RandomReader


class KnownHashes:
    """What was hashed in the life of this object, which should be one update's: files may be damaged while they lie.

    A file is known again by its inode, its length and the time it was last written.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}

    def of(self, reader: RandomReader) -> str:
        """Return the SHA-256 of the whole content in hex; read only if it was not before."""
        if reader.state not in self._known:
            self._known[reader.state] = reader.sha256()
        return self._known[reader.state]

    @contextlib.contextmanager
    def hashing(self, paths: Iterable[Path]) -> Iterator[None]:
        """Hash files in a thread while the caller does something else; leaving in order waits until they are hashed.

        What cannot be read is left to whoever needs it.
        """
        is_over = threading.Event()
        thread = threading.Thread(target=self._hash_all, args=(list(paths), is_over), name="hashing", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            is_over.set()
            raise
        finally:
            thread.join()

    def _hash_all(self, paths: list[Path], is_over: threading.Event) -> None:
        for path in paths:
            with contextlib.suppress(OSError, DeltaError), RandomReader(path) as reader:
                digest = hashlib.sha256()
                for piece in reader.pieces():
                    if is_over.is_set():
                        return
                    digest.update(piece)
                self._known[reader.state] = digest.hexdigest()
