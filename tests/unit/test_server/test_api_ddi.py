import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from simulators.hawkbit_client import Controller
from simulators.server_home import MODEL
from simulators.swu import members, self_signed
from simulators.update_api import Service

from delta_updates import apply_package, scan_tree, tree_hash
from delta_updates.package import PackageReader
from server.errors import ConfigurationError
from server.publishing import Gate, publish
from server.registry import Registry
from server.registry.ddi_tables import ActionRow
from server.registry.tables import ReportRow
from server.rollouts import Launch, Rollout, RolloutPlan


@pytest.fixture
def controller(api: Service) -> Controller:
    return Controller.with_token(api)


def outcomes(controller: Controller) -> set[str]:
    return {report.outcome for report in controller.service.home.registry.reports(controller.device_id)}


def fault_of(answer: object, status: int) -> str:
    """The message of an error in hawkBit's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"exceptionClass", "errorCode", "message", "parameters"}
    assert body["errorCode"].startswith("hawkbit.server.error.")
    return body["message"]


def backdate_reports(registry: Registry, by: timedelta) -> None:
    with registry._write() as session:
        for row in session.query(ReportRow):
            row.received_at -= by


# --- poll and configData


def test_a_poll_says_when_to_come_again_and_what_to_do(controller: Controller) -> None:
    answer = controller.get(controller.root)
    assert answer.headers["content-type"].startswith("application/hal+json")
    body = answer.json()
    assert body["config"]["polling"]["sleep"] == "00:05:00"
    assert set(body["_links"]) == {"deploymentBase", "configData"}
    assert body["_links"]["configData"]["href"] == f"http://127.0.0.1:8080{controller.root}/configData"


def test_polling_again_is_the_same_action(controller: Controller) -> None:
    links = [controller.poll()["deploymentBase"] for _ in range(3)]
    assert len(set(links)) == 1


def test_polls_at_once_get_one_action(controller: Controller) -> None:
    with ThreadPoolExecutor(4) as pool:
        links = set(pool.map(lambda _: controller.poll()["deploymentBase"], range(8)))
    assert len(links) == 1


def test_what_a_controller_says_of_itself_is_asked_for_once(controller: Controller) -> None:
    data = {"mode": "merge", "data": {"HwRevision": "2"}, "status": {"ignored": True}, "id": "", "time": 7}
    put = controller.service.client.put(controller.poll()["configData"], json=data, headers=controller.headers)
    assert put.status_code == 200
    assert "configData" not in controller.poll()


def test_a_controller_that_says_what_it_runs_gets_the_delta(controller: Controller) -> None:
    data = {"lamella.version": "2", "lamella.tree_hash": controller.service.hash_of(2)}
    url = f"{controller.root}/configData"
    controller.service.client.put(url, json={"data": data}, headers=controller.headers)
    names = [file["filename"] for file in controller.deployment()["deployment"]["chunks"][0]["artifacts"]]
    assert names == [f"{MODEL}-3-from-2.lmpkg", f"{MODEL}-3-from-2.swu"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"data": {"a": 1}}',
        json.dumps({"data": {"x" * 129: "y"}}).encode(),
        json.dumps({"data": {str(n): "y" for n in range(101)}}).encode(),
        json.dumps({"data": {"lamella.version": "newest"}}).encode(),
        json.dumps({"data": {"lamella.version": "1", "lamella.tree_hash": "short"}}).encode(),
    ],
)
def test_garbage_about_itself_is_refused(controller: Controller, body: bytes) -> None:
    url = f"{controller.root}/configData"
    assert fault_of(controller.service.client.put(url, content=body, headers=controller.headers), 400)
    assert "configData" in controller.poll()


# --- who is calling


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "TargetToken",
        "TargetToken nonsense",
        "TargetToken " + "0" * 64,
        "GatewayToken " + "0" * 64,
        "Bearer " + "0" * 64,
        "TargetToken " + "x" * 5_000,
    ],
)
def test_without_a_token_there_is_nothing(controller: Controller, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    client = controller.service.client
    for answer in (
        client.get(controller.root, headers=headers),
        client.put(f"{controller.root}/configData", json={"data": {}}, headers=headers),
        client.get(f"{controller.root}/deploymentBase/1", headers=headers),
        client.post(f"{controller.root}/deploymentBase/1/feedback", json={}, headers=headers),
        client.get(f"{controller.root}/cancelAction/1", headers=headers),
        client.post(f"{controller.root}/cancelAction/1/feedback", json={}, headers=headers),
        client.get(f"{controller.root}/softwaremodules/1/artifacts/{MODEL}-1-full.lmpkg", headers=headers),
    ):
        assert fault_of(answer, 401)
        assert answer.headers["www-authenticate"] == "TargetToken"


def test_a_token_is_its_controllers_alone_and_a_newer_one_ends_it(controller: Controller) -> None:
    other = Controller.with_token(controller.service, "gate-8")
    fault_of(controller.service.client.get(other.root, headers=controller.headers), 401)
    newer = Controller.with_token(controller.service, controller.name)
    fault_of(controller.get(controller.root), 401)
    assert newer.poll()
    assert len(controller.service.home.registry.devices()) == 2


def test_a_tenant_in_capitals_is_the_model(controller: Controller) -> None:
    assert controller.get(controller.root.replace(MODEL, MODEL.upper())).status_code == 200
    fault_of(controller.get(controller.root.replace(MODEL, "other")), 401)


def test_a_gateways_token_enrols_and_is_counted_and_revoked(api: Service) -> None:
    token, record = api.home.registry.issue_gateway_token(MODEL, device_limit=2)
    fleet = [Controller(api, f"node-{n}", f"GatewayToken {token}") for n in range(3)]
    assert "deploymentBase" in fleet[0].poll()
    assert fleet[0].poll() == fleet[0].poll()
    assert fleet[1].poll()
    assert "all that it may" in fault_of(fleet[2].get(fleet[2].root), 403)
    assert [one.devices for one in api.home.registry.gateway_tokens()] == [2]
    fault_of(fleet[0].get(fleet[0].root.replace(MODEL, "other")), 401)
    api.home.registry.revoke_gateway_token(record.token_id)
    fault_of(fleet[0].get(fleet[0].root), 401)


def test_a_new_controller_that_polls_twice_at_once_is_enrolled_once(api: Service) -> None:
    token, _ = api.home.registry.issue_gateway_token(MODEL, device_limit=5)
    node = Controller(api, "node", f"GatewayToken {token}")
    with ThreadPoolExecutor(4) as pool:
        statuses = set(pool.map(lambda _: node.get(node.root).status_code, range(8)))
    assert statuses == {200}
    assert len(api.home.registry.devices()) == 1


def test_a_revoked_device_is_out(controller: Controller) -> None:
    controller.service.home.registry.revoke_device(controller.device_id)
    assert "revoked" in fault_of(controller.get(controller.root), 403)


@pytest.mark.parametrize("name", ["a b", "x" * 65, "<script>", "%00", "ü"])
def test_names_that_no_controller_has_are_refused(controller: Controller, name: str) -> None:
    fault_of(controller.get(f"/{MODEL}/controller/v1/{name}"), 400)


def test_tokens_are_stored_as_hashes_only(api: Service) -> None:
    target, _ = api.home.registry.issue_target_token(MODEL, "gate-7")
    gateway, _ = api.home.registry.issue_gateway_token(MODEL, device_limit=1)
    files = [path.read_bytes() for path in api.home.settings.home.glob("registry.sqlite*")]
    assert files
    assert not any(token.encode() in content for content in files for token in (target, gateway))


# --- deploymentBase and feedback


def test_a_deployment_names_files_that_are_what_it_says(controller: Controller) -> None:
    document = controller.deployment()
    assert document["deployment"]["download"] == document["deployment"]["update"] == "attempt"
    (chunk,) = document["deployment"]["chunks"]
    assert (chunk["name"], chunk["version"]) == (MODEL, "3")
    for file in chunk["artifacts"]:
        url = file["_links"]["download-http"]["href"].removeprefix("http://127.0.0.1:8080")
        content = controller.get(url).content
        assert len(content) == file["size"]
        for name, digest in file["hashes"].items():
            assert hashlib.new(name, content).hexdigest() == digest
        md5 = controller.get(file["_links"]["md5sum-http"]["href"].removeprefix("http://127.0.0.1:8080"))
        assert md5.text == f"{file['hashes']['md5']}  {file['filename']}\n"


def test_what_it_runs_is_named_by_the_action_that_brought_it(controller: Controller) -> None:
    assert "installedBase" not in controller.poll()
    offered = controller.deployment()
    root = controller.root
    assert controller.get(f"{root}/installedBase/{offered['id']}").status_code == 404
    controller.install()
    assert controller.poll()["installedBase"].endswith(f"{root}/installedBase/{offered['id']}")
    assert controller.get(f"{root}/installedBase/{offered['id']}").json() == offered
    assert "9999" in fault_of(controller.get(f"{root}/installedBase/9999"), 404)
    # It says that it runs something else, to which no action brought it.
    registry = controller.service.home.registry
    registry.record_check(controller.device_id, installed_version=2, installed_hash=None)
    assert "installedBase" not in controller.poll()


def test_success_confirms_the_version_and_ends_the_action(controller: Controller) -> None:
    controller.install()
    assert outcomes(controller) == {"confirmed"}
    assert controller.service.home.registry.device(controller.device_id).installed_version == 3
    assert "deploymentBase" not in controller.poll()


def test_steps_on_the_way_are_kept(controller: Controller) -> None:
    action = controller.deployment()["id"]
    controller.feedback(action, "download", "none")
    controller.feedback(action, "proceeding", "none", result={"progress": {"cnt": 0, "of": 1}})
    assert outcomes(controller) == set()
    controller.feedback(action, "downloaded", "none")
    controller.feedback(action, "proceeding", "none", result={"progress": {"cnt": 1, "of": 1}})
    assert outcomes(controller) == {"downloaded", "applied"}
    assert controller.poll()["deploymentBase"].endswith(action)


def test_replayed_feedback_changes_nothing_and_another_end_is_refused(controller: Controller) -> None:
    action = controller.deployment()["id"]
    for _ in range(3):
        assert controller.feedback(action, "closed", "success").status_code == 200
    assert controller.feedback(action, "proceeding", "none").status_code == 200
    assert "is over" in fault_of(controller.feedback(action, "closed", "failure"), 410)
    assert outcomes(controller) == {"confirmed"}
    fault_of(controller.get(f"{controller.root}/deploymentBase/{action}"), 410)


def test_after_a_delta_that_failed_comes_the_full_package_and_then_a_day_nothing(controller: Controller) -> None:
    registry = controller.service.home.registry
    registry.record_check(controller.device_id, installed_version=2, installed_hash=controller.service.hash_of(2))
    first = controller.deployment()
    assert "from-2" in first["deployment"]["chunks"][0]["artifacts"][0]["filename"]
    controller.feedback(first["id"], "closed", "failure", details=["disk full"])
    second = controller.deployment()
    assert "full" in second["deployment"]["chunks"][0]["artifacts"][0]["filename"]
    assert second["id"] != first["id"]
    controller.feedback(second["id"], "closed", "failure")
    assert "deploymentBase" not in controller.poll()
    backdate_reports(registry, timedelta(days=1))
    assert "deploymentBase" in controller.poll()
    assert {report.reason for report in registry.reports(controller.device_id)} == {"disk full", ""}


def test_an_action_of_another_controller_does_not_exist(controller: Controller) -> None:
    action = controller.deployment()["id"]
    other = Controller.with_token(controller.service, "gate-8")
    fault_of(other.get(f"{other.root}/deploymentBase/{action}"), 404)
    fault_of(other.feedback(action, "closed", "success"), 404)
    fault_of(controller.get(f"{controller.root}/deploymentBase/0"), 400)
    fault_of(controller.get(f"{controller.root}/deploymentBase/99999999999999"), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b'{"status": {}}',
        b'{"status": {"execution": "closed"}}',
        b'{"status": {"execution": "done", "result": {"finished": "success"}}}',
        b'{"status": {"execution": "closed", "result": {"finished": "success"}, "details": "x"}}',
        b'{"status": {"execution": "closed", "result": {"finished": "success", "progress": {"cnt": -1}}}}',
    ],
)
def test_garbage_as_feedback_is_refused(controller: Controller, body: bytes) -> None:
    action = controller.deployment()["id"]
    for kind in ("deploymentBase", "cancelAction"):
        url = f"{controller.root}/{kind}/{action}/feedback"
        assert fault_of(controller.service.client.post(url, content=body, headers=controller.headers), 400)
    assert outcomes(controller) == set()


def test_a_forced_version_is_not_asked_about(controller: Controller) -> None:
    controller.service.home.registry.set_device_policy(controller.device_id, forced_version=3)
    assert controller.deployment()["deployment"]["update"] == "forced"


def test_a_device_that_is_opted_out_is_offered_nothing(controller: Controller) -> None:
    controller.service.home.registry.set_device_policy(controller.device_id, is_opted_out=True)
    assert "deploymentBase" not in controller.poll()


def test_what_an_image_holds_makes_the_version(controller: Controller, tmp_path: Path) -> None:
    """As docs/hawkbit.md tells a post-update command to do it: v2 from nothing, then v3 from v2."""
    home, source = controller.service.home, None
    home.registry.set_device_policy(controller.device_id, forced_version=2, is_opted_out=True)
    for number in (2, 3):
        document = controller.deployment()
        image = document["deployment"]["chunks"][0]["artifacts"][1]
        url = image["_links"]["download-http"]["href"].removeprefix("http://127.0.0.1:8080")
        package = tmp_path / "incoming.lmpkg"
        package.write_bytes(list(members(controller.get(url).content).values())[-1])
        with PackageReader(package) as reader:
            header = reader.header
        assert (header.source_hash is None) == (source is None)
        apply_package(source, package, tmp_path / str(number), expected_target_hash=header.target_hash)
        source = tmp_path / str(number)
        assert tree_hash(scan_tree(source)) == controller.service.hash_of(number)
        assert controller.feedback(document["id"], "closed", "success").status_code == 200
        home.registry.set_device_policy(controller.device_id, is_opted_out=False)


# --- rollouts


@pytest.fixture
def rollout(controller: Controller) -> Rollout:
    """A running rollout of v4 to all, and a controller that has v3."""
    home = controller.service.home
    controller.install()
    home.candidate(4, parent=3)
    publish(
        home.registry,
        home.artifacts,
        home.metadata,
        model=MODEL,
        version=4,
        gate=Gate(margin=0.1).judge(candidate_loss=2.0, parent_loss=2.0),
        work=home.settings.work_dir,
        launch=Launch(plan=RolloutPlan(phases=(50.0, 100.0), min_reports=1000), state="draft"),
    )
    draft = home.registry.rollouts(model=MODEL, state="draft")[0]
    return home.registry.change_rollout(draft.rollout_id, "start")


def test_a_controller_waits_for_its_turn(controller: Controller, rollout: Rollout) -> None:
    registry = controller.service.home.registry
    is_among = rollout.reaches(controller.device_id)
    assert ("deploymentBase" in controller.poll()) == is_among
    registry.change_rollout(rollout.rollout_id, "advance")
    document = controller.deployment()
    assert document["deployment"]["chunks"][0]["artifacts"][0]["filename"] == f"{MODEL}-4-from-3.lmpkg"
    controller.feedback(document["id"], "closed", "success")
    assert registry.rollout_progress(rollout.rollout_id).total.confirmed == 1


def test_a_pause_hides_an_action_and_a_halt_cancels_it(controller: Controller, rollout: Rollout) -> None:
    registry = controller.service.home.registry
    registry.change_rollout(rollout.rollout_id, "advance")
    action = controller.deployment()["id"]
    registry.change_rollout(rollout.rollout_id, "pause")
    assert set(controller.poll()) == {"configData", "installedBase"}
    registry.change_rollout(rollout.rollout_id, "resume")
    assert controller.deployment()["id"] == action
    registry.change_rollout(rollout.rollout_id, "halt")
    assert set(controller.poll()) == {"configData", "installedBase", "cancelAction"}
    controller.feedback(action, "closed", "success", of="cancelAction")
    assert set(controller.poll()) == {"configData", "installedBase"}


def test_failures_of_controllers_count(controller: Controller, rollout: Rollout) -> None:
    registry = controller.service.home.registry
    registry.change_rollout(rollout.rollout_id, "advance")
    controller.feedback(controller.deployment()["id"], "closed", "failure")
    assert registry.rollout_progress(rollout.rollout_id).total.failed == 1


# --- cancelAction


@pytest.fixture
def canceled(controller: Controller) -> tuple[Controller, str]:
    """A controller that has an action whose version was withdrawn meanwhile."""
    action = controller.deployment()["id"]
    controller.service.home.registry.withdraw(MODEL, 3, reason="answers in rhymes")
    return controller, action


def test_what_was_withdrawn_is_canceled_before_anything_else(canceled: tuple[Controller, str]) -> None:
    controller, action = canceled
    links = controller.poll()
    assert set(links) == {"cancelAction", "configData"}
    assert controller.get(links["cancelAction"]).json() == {"id": action, "cancelAction": {"stopId": action}}
    fault_of(controller.get(f"{controller.root}/deploymentBase/{action}"), 404)
    for _ in range(2):
        assert controller.feedback(action, "closed", "success", of="cancelAction").status_code == 200
    again = controller.deployment()
    assert again["id"] != action
    assert again["deployment"]["chunks"][0]["version"] == "2"
    assert outcomes(controller) == set(), "nobody failed"


def test_a_device_that_goes_on_anyway_is_believed_in_the_end(canceled: tuple[Controller, str]) -> None:
    controller, action = canceled
    controller.poll()
    assert controller.feedback(action, "rejected", "none", of="cancelAction").status_code == 200
    assert controller.feedback(action, "closed", "success").status_code == 200
    assert controller.service.home.registry.device(controller.device_id).installed_version == 3
    assert set(controller.poll()) == {"configData"}, "versions never go down"


def test_an_opt_out_cancels_what_is_not_over(controller: Controller) -> None:
    controller.deployment()
    controller.service.home.registry.set_device_policy(controller.device_id, is_opted_out=True)
    assert set(controller.poll()) == {"configData", "cancelAction"}


def test_only_what_is_being_canceled_can_be(controller: Controller) -> None:
    action = controller.deployment()["id"]
    fault_of(controller.get(f"{controller.root}/cancelAction/{action}"), 410)
    fault_of(controller.feedback(action, "closed", "success", of="cancelAction"), 410)
    assert controller.poll()["deploymentBase"].endswith(action)


def test_a_device_may_give_up_by_itself(controller: Controller) -> None:
    action = controller.deployment()["id"]
    assert controller.feedback(action, "canceled", "none").status_code == 200
    assert not controller.poll()["deploymentBase"].endswith(f"/{action}")


# --- files


def test_a_download_that_was_cut_goes_on(controller: Controller) -> None:
    artifacts = controller.deployment()["deployment"]["chunks"][0]["artifacts"]
    for file in artifacts:
        url = file["_links"]["download-http"]["href"].removeprefix("http://127.0.0.1:8080")
        whole, half = controller.get(url).content, file["size"] // 2
        rest = controller.get(url, Range=f"bytes={half}-")
        assert rest.status_code == 206
        assert rest.headers["content-range"] == f"bytes {half}-{file['size'] - 1}/{file['size']}"
        assert whole[:half] + rest.content == whole
        head = controller.service.client.head(url, headers=controller.headers)
        assert head.headers["content-length"] == str(file["size"])
        assert controller.get(url, Range=f"bytes={file['size']}-").status_code == 416


@pytest.mark.parametrize(
    "name",
    [
        "nothing.lmpkg",
        f"{MODEL}-2-full.lmpkg",
        f"{MODEL}-3-from-9.lmpkg",
        f"{MODEL}-3-full.exe",
        "..%2f..%2fregistry.sqlite",
        "x" * 100,
    ],
)
def test_names_that_no_file_has_are_not_found(controller: Controller, name: str) -> None:
    answer = controller.get(f"{controller.root}/softwaremodules/3/artifacts/{name}")
    assert answer.status_code == 404


def test_a_withdrawn_versions_files_are_gone(canceled: tuple[Controller, str]) -> None:
    controller, _ = canceled
    fault_of(controller.get(f"{controller.root}/softwaremodules/3/artifacts/{MODEL}-3-full.lmpkg"), 404)


@pytest.mark.parametrize(("setting", "endings"), [("package", [".lmpkg"]), ("swu", [".swu"])])
def test_the_operator_says_which_files(three_versions: Path, tmp_path: Path, setting: str, endings: list[str]) -> None:
    shutil.copytree(three_versions, tmp_path / "service")
    with Service(tmp_path / "service", ddi_files=setting, public_url="https://updates.example.org") as api:
        artifacts = Controller.with_token(api).deployment()["deployment"]["chunks"][0]["artifacts"]
    assert [Path(file["filename"]).suffix for file in artifacts] == endings
    assert list(artifacts[0]["_links"]) == ["download", "md5sum"]


def test_the_image_is_made_once(controller: Controller) -> None:
    first = controller.deployment()
    assert controller.deployment() == first
    with controller.service.home.registry._read() as session:
        assert session.query(ActionRow).count() == 1


def test_images_are_signed_when_there_is_a_key_and_half_of_one_stops_the_start(
    three_versions: Path, tmp_path: Path
) -> None:
    shutil.copytree(three_versions, tmp_path / "service")
    key, certificate = self_signed(tmp_path)
    with pytest.raises(ConfigurationError, match="LAMELLA_DDI_SIGNING_CERTIFICATE"):
        Service(tmp_path / "service", ddi_signing_key=key)
    with Service(tmp_path / "service", ddi_signing_key=key, ddi_signing_certificate=certificate) as api:
        controller = Controller.with_token(api)
        image = controller.deployment()["deployment"]["chunks"][0]["artifacts"][1]
        url = image["_links"]["download-http"]["href"].removeprefix("http://127.0.0.1:8080")
        held = members(controller.get(url).content)
    assert list(held) == ["sw-description", "sw-description.sig", f"{MODEL}-3-full.lmpkg"]


def test_many_first_polls_of_a_version_make_one_image(api: Service) -> None:
    fleet = [Controller.with_token(api, f"node-{n}") for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        documents = list(pool.map(lambda node: node.deployment(), fleet))
    hashes = {document["deployment"]["chunks"][0]["artifacts"][1]["hashes"]["sha256"] for document in documents}
    assert len(hashes) == 1
    assert not list(api.home.settings.work_dir.glob("swu-*"))
