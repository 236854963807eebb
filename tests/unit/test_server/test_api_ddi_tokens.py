"""Tokens of hawkBit's clients over REST: made by operators, shown once, and good for polling."""

from simulators.server_home import MODEL
from simulators.update_api import Service

TOKENS = "/v1/operator/ddi/gateway-tokens"
CONTROLLERS = f"/v1/operator/ddi/{MODEL}/controllers"


def poll(api: Service, controller_id: str, authorization: str) -> int:
    path = f"/{MODEL}/controller/v1/{controller_id}"
    return api.client.get(path, headers={"authorization": authorization}).status_code


def test_a_target_token_is_its_controllers_own_and_the_newest_counts(api: Service) -> None:
    made = [api.client.post(f"{CONTROLLERS}/gate-7/target-token", headers=api.operator) for _ in range(2)]
    assert [answer.status_code for answer in made] == [201, 201]
    first, second = (answer.json()["token"] for answer in made)
    assert poll(api, "gate-7", f"TargetToken {second}") == 200
    assert poll(api, "gate-7", f"TargetToken {first}") == 401
    assert poll(api, "gate-8", f"TargetToken {second}") == 401
    listed = api.client.get(CONTROLLERS, headers=api.operator).json()
    assert [one["controller_id"] for one in listed["items"]] == ["gate-7"]
    assert second not in str(listed)
    elsewhere = api.client.post("/v1/operator/ddi/nothing/controllers/gate-7/target-token", headers=api.operator)
    assert elsewhere.status_code == 404
    assert api.client.post(f"{CONTROLLERS}/a b/target-token", headers=api.operator).status_code == 422


def test_a_gateway_token_enrols_so_many_until_it_is_revoked(api: Service) -> None:
    made = api.client.post(TOKENS, json={"model": MODEL, "device_limit": 1}, headers=api.operator)
    assert made.status_code == 201
    token, record = made.json()["token"], made.json()["record"]
    assert poll(api, "node-1", f"GatewayToken {token}") == 200
    assert poll(api, "node-2", f"GatewayToken {token}") == 403
    (listed,) = api.client.get(TOKENS, headers=api.operator).json()
    assert (listed["devices"], listed["revoked_at"]) == (1, None)
    assert token not in str(listed)
    revoke = f"{TOKENS}/{record['token_id']}/revoke"
    assert api.client.post(revoke, headers=api.operator).status_code == 204
    assert poll(api, "node-1", f"GatewayToken {token}") == 401
    assert api.client.post(f"{TOKENS}/99/revoke", headers=api.operator).status_code == 404


def test_controllers_are_listed_in_pages(api: Service) -> None:
    for number in range(3):
        api.client.post(f"{CONTROLLERS}/gate-{number}/target-token", headers=api.operator)
    first = api.client.get(CONTROLLERS, params={"limit": 2}, headers=api.operator).json()
    rest = api.client.get(CONTROLLERS, params={"limit": 2, "after": first["next"]}, headers=api.operator).json()
    names = [one["controller_id"] for page in (first, rest) for one in page["items"]]
    assert names == ["gate-0", "gate-1", "gate-2"]
    assert rest["next"] is None
