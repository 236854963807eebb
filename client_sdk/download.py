"""Resumable, bounded package download: what arrived is kept and continued, also by the next process."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote

import urllib3

from client_sdk.connections import must_progress
from client_sdk.disk import Disk, disk_errors, replace_file
from client_sdk.errors import EnrolmentError, PackageError, RefusedError, RetryLaterError, ServiceUnavailableError
from client_sdk.pace import Backoff
from client_sdk.responses import CHUNK_BYTES, STRONG_ETAG, raise_for_status, require_no_portal
from client_sdk.service import TARGETS
from client_sdk.transport import Transport
from delta_updates.manifest import sha256_of
from delta_updates.offer import REDIRECT_HEADER

Progress = Callable[[int, int], None]
"""Called with the bytes of a download that are on this disk, and its signed length in bytes."""

_logger = logging.getLogger(__name__)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_MAX_ETAG_BYTES = 257
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416


class Fetcher(Protocol):
    """Something that brings signed files here."""

    def fetch(
        self,
        path: str,
        destination: Path,
        *,
        length: int,
        sha256: str,
        on_progress: Progress,
        until: float | None = None,
    ) -> int:
        """Put exactly the signed bytes of a target path at `destination`; returns how many bytes were transferred.

        `until` is the moment of the clock at which it gives up; by default the limits' deadline from now.

        Raises:
            ServiceUnavailableError: the service is away or too slow; what arrived is kept.
            PackageError: the bytes are not the signed ones; nothing is kept.
            DeviceDiskError: this device's disk; what arrived is kept.
        """
        ...


class HttpFetcher:
    """`Fetcher` over HTTP ranges (RFC 9110, section 14).

    What arrived lies beside the destination as `.part`, with the ETag that it belongs to as `.etag`.
    """

    def __init__(self, transport: Transport, disk: Disk, *, prefix: str = TARGETS) -> None:
        """Choose a source.

        Args:
            transport: to the update service, or to a mirror.
            disk: what is written through.
            prefix: URL path before a target path.
        """
        self._transport = transport
        self._disk = disk
        self._prefix = prefix

    @property
    def deadline(self) -> float:
        """When a download that begins now has to be whole."""
        return self._transport.clock.monotonic() + self._transport.limits.download_deadline_s

    def fetch(
        self,
        path: str,
        destination: Path,
        *,
        length: int,
        sha256: str,
        on_progress: Progress,
        until: float | None = None,
    ) -> int:
        """Put exactly the signed bytes at `destination`; see `Fetcher.fetch`."""
        url_path = self._prefix + quote(path)
        with disk_errors(destination.parent, "storing the download"):
            if destination.exists() and sha256_of(destination) == sha256:
                on_progress(length, length)
                return 0
            part = _Part(destination, length, self._disk)
            was_resumed = part.size() > 0
            transfer = _Transfer(self._transport, url_path, part, on_progress, until=until or self.deadline)
            transfer.run()
            if was_resumed and sha256_of(part.path) != sha256:
                # The kept part may be damaged, which proves nothing about the service: once more, from zero.
                part.discard()
                transfer.run()
            if sha256_of(part.path) != sha256:
                part.discard()
                raise PackageError(
                    f"The {length} bytes downloaded from {url_path} do not have the signed sha256 {sha256[:12]}…; they "
                    "were deleted."
                )
            part.finish(destination)
            return transfer.transferred_bytes


class MirroredFetcher:
    """`Fetcher` that asks mirrors first and the update service last; what one source sent, the next one continues.

    A mirror is trusted with nothing: what it sends must have the signed hash, and it never sees the credential.
    """

    def __init__(self, mirrors: Sequence[Fetcher], service: HttpFetcher, disk: Disk) -> None:
        self._mirrors = mirrors
        self._service = service
        self._disk = disk

    def fetch(
        self,
        path: str,
        destination: Path,
        *,
        length: int,
        sha256: str,
        on_progress: Progress,
        until: float | None = None,
    ) -> int:
        """Put exactly the signed bytes at `destination`; see `Fetcher.fetch`. Errors are those of the service.

        All sources together have the time of one.
        """
        until = until or self._service.deadline
        for number, mirror in enumerate(self._mirrors, start=1):
            try:
                return mirror.fetch(
                    path, destination, length=length, sha256=sha256, on_progress=on_progress, until=until
                )
            except (RetryLaterError, RefusedError, EnrolmentError) as error:
                _logger.info("mirror %d of %d is of no use (%s)", number, len(self._mirrors), error)
            # An ETag means something at its own source only; the signed hash tells whether the parts fit together.
            with disk_errors(destination.parent, "storing the download"):
                _Part(destination, length, self._disk).forget_source()
        return self._service.fetch(
            path, destination, length=length, sha256=sha256, on_progress=on_progress, until=until
        )


class _Part:
    """The bytes that arrived so far, and the ETag they belong to."""

    def __init__(self, destination: Path, length: int, disk: Disk) -> None:
        self.path = destination.with_name(destination.name + ".part")
        self.length = length
        self._etag_path = destination.with_name(destination.name + ".etag")
        self._disk = disk
        # A link there would let the download be written over what it leads to.
        if self.size() > length or self.path.is_symlink() or self._etag_path.is_symlink():
            self.discard()

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def etag(self) -> str | None:
        """What is kept; None where it is no ETag, as after a power cut: then the final hash has to tell."""
        try:
            with self._etag_path.open("rb") as file:
                kept = file.read(_MAX_ETAG_BYTES).decode("ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return kept if STRONG_ETAG.fullmatch(kept) else None

    def restart(self, etag: str | None) -> None:
        """Forget what arrived and note the ETag of what will."""
        self.discard()
        if etag and STRONG_ETAG.fullmatch(etag):
            replace_file(self._disk, self._etag_path, etag.encode())

    def discard(self) -> None:
        self._disk.remove(self.path)
        self.forget_source()

    def forget_source(self) -> None:
        self._disk.remove(self._etag_path)

    def append(self, offset: int, chunks: Callable[[], bytes], check: Callable[[int], None]) -> None:
        """Write chunks from `offset` on until they end."""
        with self._disk.open_at(self.path, offset) as file:
            while chunk := chunks():
                offset += len(chunk)
                # Checked before writing: a server must not fill this disk with more than was signed.
                if offset > self.length:
                    self.discard()
                    raise PackageError(f"The service sends more than the signed {self.length} bytes of this package.")
                _write_all(file, chunk)
                check(offset)

    def finish(self, destination: Path) -> None:
        self._disk.sync_file(self.path)
        self._disk.rename(self.path, destination)
        self._disk.remove(self._etag_path)
        self._disk.sync_folder(destination.parent)


class _Transfer:
    """Requests until a part is whole, within the limits of time, rate and patience."""

    def __init__(
        self, transport: Transport, url_path: str, part: _Part, on_progress: Progress, *, until: float
    ) -> None:
        self.transferred_bytes = 0
        self._transport = transport
        self._url_path = url_path
        self._part = part
        self._on_progress = on_progress
        self._limits = transport.limits
        self._clock = transport.clock
        self._deadline = until
        self._window_start = (0.0, 0)
        self._offset = 0

    def run(self) -> None:
        """Bring the part to its full length.

        Raises:
            ServiceUnavailableError: `attempts` failures in a row without a byte gained, or the deadline passed.
            PackageError: the service has other bytes than the signed ones.
        """
        backoff = Backoff(self._limits, self._clock)
        failures = 0
        while (before := self._part.size()) < self._part.length:
            failure = self._attempt()
            gained = self._part.size() - before
            if failure is None or self._part.size() == self._part.length:
                continue
            failures = 0 if gained > 0 else failures + 1
            if failures >= self._limits.attempts or self._clock.monotonic() >= self._deadline:
                raise failure
            backoff.wait(failures, at_least_s=failure.retry_after_s)

    def _attempt(self) -> ServiceUnavailableError | None:
        """One request from where the part ends; returns why it ended early, or None."""
        offset, etag = self._part.size(), self._part.etag()
        try:
            headers = _range_headers(offset, etag) | {REDIRECT_HEADER: "1"}
            with self._transport.open("GET", self._url_path, headers=headers, follow=True) as response:
                offset = self._agree(response, offset, etag)
                self._window_start = (self._clock.monotonic(), offset)
                self._offset = offset
                self._on_progress(offset, self._part.length)
                with must_progress(response, every_s=self._limits.rate_window_s, progress=lambda: self._offset):
                    self._part.append(offset, lambda: response.read1(CHUNK_BYTES), self._count)
        except ServiceUnavailableError as error:
            return error
        if self._part.size() < self._part.length:
            return ServiceUnavailableError(f"{self._transport.server_url} ended the transfer early.")
        return None

    def _agree(self, response: urllib3.BaseHTTPResponse, offset: int, etag: str | None) -> int:
        """Check what the server is about to send; returns the offset it starts at."""
        if response.status == _RANGE_NOT_SATISFIABLE:
            self._part.discard()
            raise ServiceUnavailableError(f"{self._transport.server_url} has no bytes from {offset} on.")
        raise_for_status(response, self._transport.server_url, self._clock, self._limits)
        require_no_portal(response, self._transport.server_url)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PackageError(f"The service encodes {self._url_path} although it was asked not to.")
        new_etag = response.headers.get("ETag")
        if response.status == _PARTIAL_CONTENT:
            is_other = etag is not None and new_etag is not None and etag != new_etag
            if offset == 0 or is_other or not _continues(response, offset, self._part.length):
                # Appending it would build a file of two versions: drop the part and ask for the whole next time.
                self._part.discard()
                raise ServiceUnavailableError(
                    f"{self._transport.server_url} answered with another range than the one asked for (from {offset}): "
                    f"{response.headers.get('Content-Range')!r}."
                )
            return offset
        # 200 instead of 206: the server ignores ranges, or the file changed. It sends everything.
        announced = response.headers.get("Content-Length")
        if announced is not None and announced != str(self._part.length):
            raise PackageError(
                f"The service announces {announced} bytes for {self._url_path}; signed are {self._part.length}."
            )
        self._part.restart(new_etag)
        return 0

    def _count(self, offset: int) -> None:
        self.transferred_bytes += offset - self._offset
        self._offset = offset
        self._on_progress(offset, self._part.length)
        now = self._clock.monotonic()
        if now >= self._deadline:
            raise ServiceUnavailableError(
                f"The download took longer than {self._limits.download_deadline_s:.0f} s. The next update continues it."
            )
        start_s, start_offset = self._window_start
        elapsed_s = now - start_s
        if elapsed_s < self._limits.rate_window_s:
            return
        # An endless trickle would hold the device on an old version for as long as the attacker likes.
        if offset - start_offset < self._limits.min_rate_bytes_per_s * elapsed_s:
            raise ServiceUnavailableError(
                f"{self._transport.server_url} sent {offset - start_offset} bytes in {elapsed_s:.0f} s: too slow."
            )
        self._window_start = (now, offset)


def _range_headers(offset: int, etag: str | None) -> dict[str, str]:
    if offset == 0:
        return {}
    return {"Range": f"bytes={offset}-"} | ({"If-Range": etag} if etag else {})


def _continues(response: urllib3.BaseHTTPResponse, offset: int, length: int) -> bool:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        return False
    first, last, total = match.groups()
    return int(first) == offset and int(last) == length - 1 and total in {"*", str(length)}


def _write_all(file: BinaryIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
