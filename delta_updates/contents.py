"""What a package holds, file by file: its records are read and checked, and nothing is applied."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from delta_updates.package import PackagedFile, PackageHeader, PackageReader

if TYPE_CHECKING:
    from pathlib import Path


class FileContents(BaseModel):
    """How one file of the target is made.

    Attributes:
        packaged: What the header says of it.
        package_bytes: What its records take in the package; 0 where the source's file is taken over.
        codecs: Its records, counted by codec.
    """

    model_config = ConfigDict(frozen=True)

    packaged: PackagedFile
    package_bytes: int
    codecs: dict[str, int]


class PackageContents(BaseModel):
    """All of a package that can be said without its source."""

    model_config = ConfigDict(frozen=True)

    format: int
    header: PackageHeader
    package_bytes: int
    files: tuple[FileContents, ...]

    @property
    def codecs(self) -> dict[str, int]:
        """Records of the whole package, counted by codec."""
        total: Counter[str] = Counter()
        for file in self.files:
            total.update(file.codecs)
        return dict(sorted(total.items()))


def package_contents(path: Path) -> PackageContents:
    """Read a package from its first byte to its last, one record in memory at a time.

    Raises:
        PackageFormatError: Not a package, or one that is damaged or cut off anywhere.
        OSError: It cannot be read.
    """
    with PackageReader(path) as reader:
        files = []
        for packaged in reader.header.files:
            start, codecs = reader.position, Counter(record.codec.name.lower() for record in reader.records(packaged))
            files.append(
                FileContents(
                    packaged=packaged, package_bytes=reader.position - start, codecs=dict(sorted(codecs.items()))
                )
            )
        reader.finish()
        return PackageContents(
            format=reader.format, header=reader.header, package_bytes=reader.position, files=tuple(files)
        )
