"""Flow (b): from a published version to a device that verified, tested and runs it; real processes, real HTTP."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load

from model import load_quantized_adapter
from server.artifacts import LocalArtifactStore
from server.config import load_settings
from server.publishing import materialise
from server.registry import Registry

pytestmark = pytest.mark.slow


def status(service, home) -> dict:
    return json.loads(service.device(home, "status", "--json"))


def answer(service, home) -> str:
    return json.loads(
        service.device(home, "generate", "--chat", "--json", "--max-new-tokens", "8", "What does sorted do?")
    )["text"]


def test_a_device_follows_the_releases_and_a_fresh_one_ends_on_the_same_bytes(service, tmp_path):
    service.serve()
    old = tmp_path / "old"
    service.enroll(old)
    first = json.loads(service.device(old, "update", "--json"))
    assert (first["decision"], first["to_version"], first["package"]) == ("confirmed", 1, "full")
    service.train("--rounds", "1")
    service.lamella("release", service.runs()[0]["run_id"])
    assert service.versions()[-1]["facts"]["adapter_format"] == "int8"
    second = json.loads(service.device(old, "update", "--json"))
    assert (second["from_version"], second["to_version"], second["package"]) == (1, 2, "delta")
    # Signed where it was trained, computed again on the device.
    assert all(result["health"]["logit_error"] < 1e-3 for result in (first, second))
    assert second["package_bytes"] < 0.1 * first["package_bytes"]
    released = service.release_adapter(seed=3)
    third = json.loads(service.device(old, "update", "--json"))
    assert (third["to_version"], third["package"]) == (3, "delta")
    fresh = tmp_path / "fresh"
    service.enroll(fresh)
    assert json.loads(service.device(fresh, "update", "--json"))["to_version"] == 3
    assert status(service, old)["tree_hash"] == status(service, fresh)["tree_hash"] == released["tree_hash"]
    assert answer(service, old) == answer(service, fresh)
    assert json.loads(service.device(old, "update", "--json"))["decision"] == "up_to_date"
    seen = json.loads(service.lamella("devices", "list", "--json"))
    assert [d["installed_version"] for d in seen] == [3, 3]


CUT_OFF_BEFORE_THE_GATE = """
import os, sys
import server.cli.release as release
release.publish_version = lambda *_arguments, **_options: os._exit(7)  # the candidate is there, its gate is not
sys.argv = ["lamella", "release", sys.argv[1]]
from server.cli import main
main()
"""


def test_a_release_that_was_cut_off_before_its_gate_is_measured_again(service):
    service.train("--rounds", "1")
    run_id = service.runs()[0]["run_id"]
    service.run(sys.executable, "-c", CUT_OFF_BEFORE_THE_GATE, run_id, expect=7)
    assert [v["state"] for v in service.versions()] == ["released", "candidate"]
    assert "Gate: held-out loss" in service.lamella("release", run_id)
    assert [v["state"] for v in service.versions()] == ["released", "released"]


def test_what_rounding_a_release_left_behind_is_in_the_next_one(service, tmp_path):
    service.serve()
    home = tmp_path / "device"
    service.enroll(home)
    for _ in range(2):
        service.train("--rounds", "1", "--adapter-format", "int4")
        service.lamella("release", service.runs()[0]["run_id"], "--margin", "1")
        device = json.loads(service.device(home, "update", "--json"))
    assert (device["decision"], device["to_version"], device["package"]) == ("confirmed", 3, "delta")
    assert answer(service, home) is not None
    settings = load_settings(home=service.home)
    registry, artifacts = Registry.open(settings), LocalArtifactStore(settings.artifacts_dir)
    trained = load(artifacts.read_bytes(registry.last_round(service.runs()[0]["run_id"]).artifacts["adapter"]))
    masters = [load(artifacts.read_bytes(registry.version("chat", n).master_sha256)) for n in (2, 3)]
    released = []
    for number in (2, 3):
        materialise(registry, artifacts, model="chat", version=number, folder=tmp_path / f"v{number}")
        released.append(load_quantized_adapter(tmp_path / f"v{number}" / "adapter"))
        assert registry.version("chat", number).manifest.facts["adapter_format"] == "int4"
    registry.close()
    before, after = (adapter.floats() for adapter in released)
    left_behind = {name: masters[0][name] - values for name, values in before.items()}
    assert max(np.abs(values).max() for values in left_behind.values()) > 0
    for name, values in trained.items():
        np.testing.assert_array_equal(masters[1][name], values + left_behind[name])
        scales = released[1].factors[name].scales
        by_number = scales[None, :] if name.endswith("lora_b") else scales[:, None]
        assert (np.abs(masters[1][name] - after[name]) <= 0.501 * by_number).all()


def test_an_agent_updates_itself_and_survives_a_server_that_goes_away(service, tmp_path):
    server = service.serve()
    home = tmp_path / "agent"
    service.enroll(home)
    agent = service.start("lamella-device", "agent", "--home", str(home), "--interval-s", "1")
    wait_for(lambda: status(service, home)["version"] == 1)
    server.send_signal(signal.SIGKILL)
    server.communicate()
    service.release_adapter(seed=1)
    time.sleep(3)
    assert agent.poll() is None
    service.serve()
    wait_for(lambda: status(service, home)["version"] == 2)
    agent.send_signal(signal.SIGTERM)
    output, _ = agent.communicate(timeout=30)
    assert agent.returncode == 0, output


def test_a_device_killed_in_the_middle_of_an_update_ends_on_a_whole_version(service, tmp_path):
    service.serve()
    home = tmp_path / "device"
    service.enroll(home)
    service.device(home, "update")
    service.release_adapter(seed=2)
    for delay_s in (0.2, 0.6, 1.0, 1.5, 2.0):
        process = service.start("lamella-device", "update", "--home", str(home))
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert status(service, home)["version"] in {1, 2}
        assert answer(service, home) is not None
    # Killed in its self-test three times, v2 would count as one that crashes; a newer version is tried all the same.
    service.release_adapter(seed=3)
    service.device(home, "update")
    assert status(service, home)["version"] == 3


def test_a_package_that_was_tampered_with_is_refused_and_the_old_version_serves(service, tmp_path):
    service.serve()
    home = tmp_path / "device"
    service.enroll(home)
    service.device(home, "update")
    released = service.release_adapter(seed=4)
    path = next(p for p in released["packages"] if "from-1" in p)
    length = released["packages"][path]
    (package,) = [file for file in (service.home / "artifacts").glob("*/*") if file.stat().st_size == length]
    raw = bytearray(package.read_bytes())
    raw[len(raw) // 2] ^= 1
    package.chmod(0o644)
    package.write_bytes(raw)
    result = json.loads(service.device(home, "update", "--json"))
    # One try at the full package, which is whole.
    assert (result["decision"], result["package"]) == ("confirmed", "full")
    assert status(service, home)["version"] == 2


def test_a_second_use_of_an_enrolment_file_and_a_wrong_server_are_told_in_words(service, tmp_path):
    service.serve()
    invitation = tmp_path / "invitation.json"
    service.lamella("devices", "invite", "--model", "chat", "--out", str(invitation))
    service.device(tmp_path / "first", "enroll", str(invitation))
    told = service.device(tmp_path / "second", "enroll", str(invitation), expect=1)
    assert "token" in told.lower()
    service.close()
    told = service.device(tmp_path / "first", "update", expect=1)
    assert "127.0.0.1" in told


def test_a_worse_candidate_is_rejected_and_nothing_is_offered(service, tmp_path):
    service.train("--rounds", "1", "--set", "learning-rate=10", "--set", "max-update-norm=1e9")
    told = service.lamella("release", service.runs()[0]["run_id"], "--margin", "0", expect=1)
    assert "rejected" in told
    assert [v["state"] for v in service.versions()] == ["released", "rejected"]


def wait_for(condition, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(1)
    raise AssertionError("it did not happen in time")


GENERATES_WITHOUT_END = """
import json, sys, time
from pathlib import Path
from client_sdk import Device

device = Device(Path(sys.argv[1]))
while True:
    started = time.monotonic()
    answer = device.answer("What does sorted do?", max_new_tokens=4)
    print(json.dumps({"version": answer.version, "text": answer.text, "at": started}), flush=True)
"""


def test_an_app_generates_all_through_an_update_and_goes_on_with_the_new_version(service, tmp_path):
    """Download, apply, self-test and switch are another process's work; the app is neither stopped nor started anew."""
    service.serve()
    home = tmp_path / "device"
    service.enroll(home)
    service.device(home, "update")
    service.release_adapter(seed=5)
    app = service.start(sys.executable, "-c", GENERATES_WITHOUT_END, str(home))

    def answered() -> dict:
        line = app.stdout.readline()
        assert line.startswith("{"), line + app.stdout.read()
        return json.loads(line)

    told = [answered() for _ in range(3)]
    began = time.monotonic()
    update = service.start("lamella-device", "update", "--home", str(home), "--json")
    while told[-1]["version"] == 1:
        told.append(answered())
        assert time.monotonic() - began < 300
    told.extend(answered() for _ in range(3))
    result = json.loads(update.communicate(timeout=120)[0])
    assert (result["decision"], result["to_version"]) == ("confirmed", 2)
    assert app.poll() is None
    # First the old version and then the new one, each with its own answer, and neither ever in between.
    versions = [one["version"] for one in told]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    assert len({(one["version"], one["text"]) for one in told}) == 2
    assert sum(one["version"] == 1 and one["at"] > began for one in told) >= 3
