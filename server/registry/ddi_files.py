"""What hawkBit's clients load: hashes of stored files, and images that were made of them."""

from __future__ import annotations

from server.registry.ddi_records import FileDigests
from server.registry.ddi_tables import DigestRow, ImageRow
from server.registry.transactions import Transactions


class DdiFileTransactions(Transactions):
    """The registry's transactions on files for hawkBit's clients."""

    def digests(self, sha256: str) -> FileDigests | None:
        """What was computed about a stored file."""
        with self._read() as session:
            row = session.get(DigestRow, sha256)
            if row is None:
                return None
            return FileDigests(sha256=row.sha256, length=row.length, sha1=row.sha1, md5=row.md5)

    def add_digests(self, digests: FileDigests) -> None:
        """Keep what was computed about a stored file; doing it twice changes nothing."""
        with self._write() as session:
            session.merge(DigestRow(**vars(digests)))

    def image(self, recipe: str) -> str | None:
        """The digest of the image that was made by a recipe."""
        with self._read() as session:
            row = session.get(ImageRow, recipe)
            return None if row is None else row.sha256

    def add_image(self, recipe: str, sha256: str) -> None:
        """Keep which image a recipe makes; its bytes are in the artifact store."""
        with self._write() as session:
            session.merge(ImageRow(recipe=recipe, sha256=sha256))
