"""A client of hawkBit's protocol, as its documentation has it, over Starlette's test client."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simulators.server_home import MODEL
from simulators.update_api import Service

if TYPE_CHECKING:
    from httpx2 import Response


@dataclass
class Controller:
    """One controller with its token."""

    service: Service
    name: str
    authorization: str
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = {"Authorization": self.authorization}

    @classmethod
    def with_token(cls, service: Service, name: str = "gate-7") -> "Controller":
        token, _ = service.home.registry.issue_target_token(MODEL, name)
        return cls(service, name, f"TargetToken {token}")

    @property
    def root(self) -> str:
        return f"/{MODEL}/controller/v1/{self.name}"

    @property
    def device_id(self) -> str:
        found = [one for one in self.service.home.registry.devices() if one.name == self.name]
        assert len(found) == 1
        return found[0].device_id

    def get(self, url: str, **headers: str) -> "Response":
        return self.service.client.get(url, headers=self.headers | headers)

    def poll(self) -> dict[str, str]:
        """The links of a poll, by name, without the host."""
        answer = self.get(self.root)
        assert answer.status_code == 200, answer.text
        public = self.service.home.settings.public_url
        return {name: link["href"].removeprefix(public) for name, link in answer.json()["_links"].items()}

    def deployment(self) -> dict[str, Any]:
        answer = self.get(self.poll()["deploymentBase"])
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def feedback(
        self, action: str, execution: str, finished: str, *, of: str = "deploymentBase", **more: Any
    ) -> "Response":
        status = {"execution": execution, "result": {"finished": finished} | more.pop("result", {}), **more}
        body = {"id": action, "time": "20260301T120000", "status": status}
        return self.service.client.post(f"{self.root}/{of}/{action}/feedback", json=body, headers=self.headers)

    def install(self) -> None:
        """Take what is offered, and say that it went well."""
        document = self.deployment()
        assert self.feedback(document["id"], "closed", "success").status_code == 200
