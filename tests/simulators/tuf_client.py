"""A device's view of signed metadata: python-tuf's own client, fed from a folder or from an HTTP test client."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface


class CallFetcher(FetcherInterface):
    """Fetches by calling ``get(url) -> (status, body)``."""

    def __init__(self, get: Callable[[str], tuple[int, bytes]]) -> None:
        self._get = get

    def _fetch(self, url: str) -> Iterator[bytes]:
        status, body = self._get(url)
        if status != 200:
            raise DownloadHTTPError(f"{url} answered {status}", status)
        return iter([body])


def updater_for(get: Callable[[str], tuple[int, bytes]], folder: Path, *, root: bytes) -> Updater:
    """A client that trusts ``root`` and keeps its state in ``folder``."""
    folder.mkdir(exist_ok=True)
    return Updater(
        metadata_dir=str(folder),
        metadata_base_url="/v1/metadata/",
        target_dir=str(folder),
        target_base_url="/v1/targets/",
        fetcher=CallFetcher(get),
        config=UpdaterConfig(prefix_targets_with_hash=False),
        bootstrap=root,
    )


def folder_getter(metadata: Path) -> Callable[[str], tuple[int, bytes]]:
    """Answers metadata URLs from the server's own folder."""

    def get(url: str) -> tuple[int, bytes]:
        path = metadata / url.rsplit("/", 1)[-1]
        return (200, path.read_bytes()) if path.is_file() else (404, b"")

    return get
