"""Every operation of an operator names the role it needs, and refuses everybody else."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from simulators.server_home import MODEL
from simulators.update_api import Service

from server.api.services import NeedsRole
from server.registry import Role

EXAMPLES = {"{device_id}": "0" * 32, "{model}": MODEL, "{number}": "1", "{run_id}": "run-1", "{token_id}": "7"}
EXAMPLES |= {"{controller_id}": "gate-7"}
EXAMPLES |= {"{file}": "statement.json", "{rollout_id}": "77", "{action}": "halt"}
BODIES = {
    "/policy": {"group": "pilot"},
    "/withdraw": {"reason": "slow"},
    "/halt": {},
    "/rollouts": {"model": MODEL, "version": 99},
}


def routes(api: Service) -> Iterator[tuple[str, str, APIRoute]]:
    paths = api.app.openapi()["paths"]
    by_name = {(method, path) for path, methods in paths.items() for method in methods}
    for route in all_routes(api.app.router.routes):
        for method in route.methods:
            full = next((p for m, p in by_name if m == method.lower() and p.endswith(route.path)), route.path)
            if full.startswith("/v1/operator"):
                yield method, full, route


def all_routes(found: object) -> Iterator[APIRoute]:
    for route in found:
        if isinstance(route, APIRoute):
            if route.endpoint.__module__.startswith("server.api."):  # the console has pages of the same names
                yield route
        elif hasattr(route, "original_router"):
            yield from all_routes(route.original_router.routes)


def roles(dependant: Dependant) -> list[Role]:
    own = [dependant.call.role] if isinstance(dependant.call, NeedsRole) else []
    return own + [role for inner in dependant.dependencies for role in roles(inner)]


def filled(path: str) -> str:
    for name, value in EXAMPLES.items():
        path = path.replace(name, value)
    assert "{" not in path, f"an example for {path} is missing above"
    return path


def body_of(path: str) -> dict[str, object]:
    return next((body for end, body in BODIES.items() if path.endswith(end)), {"model": MODEL})


def headers_of(api: Service, role: Role) -> dict[str, str]:
    registry = api.app.state.services.registry
    name = f"a-{role}"
    if name not in {operator.name for operator in registry.operators()}:
        registry.add_operator(name, role=role)
    token, _ = registry.create_operator_token(name, label="test", valid_for=timedelta(hours=1))
    return {"Authorization": f"Bearer {token}"}


def test_every_operation_names_its_role_and_changes_need_more_than_a_viewer(shared_api: Service) -> None:
    names = set()
    for method, path, route in routes(shared_api):
        names.add(f"{method} {path}")
        declared = roles(route.dependant)
        assert declared, f"{method} {path} names no role: give it a parameter Viewer, Publisher or Admin"
        if method not in {"GET", "HEAD"}:
            assert max(declared, key=list(Role).index) is not Role.VIEWER, f"{method} {path}"
    listed = {
        f"{method.upper()} {path}"
        for path, methods in shared_api.app.openapi()["paths"].items()
        for method in methods
        if path.startswith("/v1/operator")
    }
    assert names == listed
    assert len(names) >= 15


def test_every_operation_refuses_who_is_nobody(shared_api: Service) -> None:
    nobody = ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {'0' * 16}.{'a' * 43}"})
    for method, path, _ in routes(shared_api):
        for headers in nobody:
            answer = shared_api.client.request(method, filled(path), headers=headers, json=body_of(filled(path)))
            assert answer.status_code == 401, (method, path)
            assert "lamella operators token create" in answer.json()["detail"]


def test_every_operation_refuses_a_role_that_is_too_low(shared_api: Service) -> None:
    registry = shared_api.app.state.services.registry
    for method, path, route in routes(shared_api):
        needed = max(roles(route.dependant), key=list(Role).index)
        for role in Role:
            if role.includes(needed):
                continue
            before = registry.audit_log(limit=1)
            answer = shared_api.client.request(
                method, filled(path), headers=headers_of(shared_api, role), json=body_of(filled(path))
            )
            assert answer.status_code == 403, (method, path, role)
            assert f"needs the role {needed}" in answer.json()["detail"]
            if method not in {"GET", "HEAD"}:
                (entry,) = registry.audit_log(limit=1)
                assert entry not in before
                assert (entry.actor, entry.outcome) == (f"a-{role}", f"refused: needs {needed}")


def test_every_change_is_written_into_the_audit_log(api: Service) -> None:
    """Also one that does not succeed, as there is no such device."""
    registry = api.app.state.services.registry
    headers = headers_of(api, Role.ADMIN)
    for method, path, _ in routes(api):
        if method in {"GET", "HEAD"}:
            continue
        before = len(registry.audit_log())
        answer = api.client.request(method, filled(path), headers=headers, json=body_of(filled(path)))
        assert answer.status_code in {200, 201, 404, 409}, answer.text
        entries = registry.audit_log()
        assert len(entries) == before + 1, f"{method} {path} left no entry"
        assert entries[0].actor == "a-admin"
        assert entries[0].outcome.startswith("done" if answer.status_code < 300 else "failed: There is no")


@pytest.mark.parametrize("end", ["revoked", "removed"])
def test_a_token_stops_working_at_once(api: Service, end: str) -> None:
    registry = api.app.state.services.registry
    registry.add_operator("ci", role=Role.VIEWER)
    token, record = registry.create_operator_token("ci", label="ci", valid_for=timedelta(hours=1))
    headers = {"Authorization": f"Bearer {token}"}
    assert api.client.get("/v1/operator/whoami", headers=headers).json() == {"name": "ci", "role": "viewer"}
    assert api.client.get("/v1/operator/whoami", headers=headers).status_code == 200
    if end == "revoked":
        registry.revoke_operator_token(record.token_id)
    else:
        registry.remove_operator("ci")
    assert api.client.get("/v1/operator/whoami", headers=headers).status_code == 401


def test_a_tokens_id_with_another_secret_is_refused_also_after_the_right_one(shared_api: Service) -> None:
    headers = headers_of(shared_api, Role.VIEWER)
    assert shared_api.client.get("/v1/operator/models", headers=headers).status_code == 200
    wrong = {"Authorization": headers["Authorization"][:-43] + "a" * 43}
    assert shared_api.client.get("/v1/operator/models", headers=wrong).status_code == 401


def test_the_file_in_the_home_is_an_admin(shared_api: Service) -> None:
    answer = shared_api.client.get("/v1/operator/whoami", headers=shared_api.operator)
    assert answer.json() == {"name": "operator.token", "role": "admin"}
