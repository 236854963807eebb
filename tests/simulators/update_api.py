"""The real API in this process, spoken to through Starlette's test client."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Self

from simulators.server_home import MODEL, Home, init_trust, offline_keys

from delta_updates import PROTOCOL, PROTOCOL_HEADER
from server.api import create_app
from server.config import Settings
from server.signing import SignedMetadata

with warnings.catch_warnings():
    # Starlette 1.3 names a class by the module that anyio 4.14 moved it out of.
    warnings.filterwarnings("ignore", "The anyio.abc.BlockingPortal alias", DeprecationWarning)
    from starlette.testclient import TestClient

if TYPE_CHECKING:
    from httpx2 import Response


class Service:
    """An API over a home of its own, with the callers' headers at hand."""

    def __init__(self, folder: Path, **settings: object) -> None:
        found = Settings(home=folder / "home", **settings)
        if not (found.home / "metadata").exists():
            init_trust(found, offline_keys(folder))
        self.app = create_app(found)
        services = self.app.state.services
        # The operator beside the service: its own view of the metadata, with the releases key.
        metadata = SignedMetadata.open(found, release_keys=offline_keys(folder))
        self.home = Home(found, services.registry, services.artifacts, metadata, folder)
        self.client = TestClient(self.app, raise_server_exceptions=False)
        self.operator = {"Authorization": f"Bearer {services.operator_token}"}

    def __enter__(self) -> Self:
        self.client.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.__exit__(None, None, None)

    def token(self) -> str:
        answer = self.client.post("/v1/operator/enrolment-tokens", json={"model": MODEL}, headers=self.operator)
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["file"]["token"]
        return token

    def enrol(self, name: str = "kitchen") -> dict[str, str]:
        """Enrol a device and return the headers it sends from then on."""
        answer = self.client.post("/v1/devices", json={"token": self.token(), "name": name})
        assert answer.status_code == 201, answer.text
        return {"Authorization": f"Bearer {answer.json()['credential']}"}

    def check(self, device: dict[str, str], **query: object) -> "Response":
        """Ask as a device of now, unless `device` says another protocol."""
        headers = {PROTOCOL_HEADER: str(PROTOCOL)} | device
        return self.client.post("/v1/updates/check", json={"model": MODEL, **query}, headers=headers)

    def hash_of(self, number: int) -> str:
        return self.home.registry.version(MODEL, number).manifest.tree_hash
