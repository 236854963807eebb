"""Flow (a): federated rounds over Flower, from the operator's command to the registry and back after a crash."""

import contextlib
import json
import os
import signal
import subprocess
import time

import psutil
import pytest

from server.federation.flower import end_process_tree

pytestmark = pytest.mark.slow


def flower_processes(home) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(home) in line and "flower" in line:
            found.append(process)
    return found


def test_a_simulated_run_is_watched_recorded_and_leaves_no_process(service):
    shown = service.train("--rounds", "1")
    assert "round 1: released" in shown
    assert "replies 2/2" in shown
    (run,) = service.runs()
    facts = service.run_facts(run["run_id"])
    assert facts["status"] == "completed"
    assert facts["rounds"][0]["loss"] > 0
    assert flower_processes(service.home) == []
    # Each device keeps its own ledger, and the server's has the same events.
    ledgers = list((service.home / "fleets" / "chat" / "devices").glob("*/ledger.jsonl"))
    assert len(ledgers) == 2
    assert all(len(ledger.read_text(encoding="utf-8").splitlines()) == 1 for ledger in ledgers)


def test_a_run_that_protects_users_as_well_charges_both_and_its_ledger_is_one_chain(service, tmp_path):
    options = ("--rounds", "2", "--set", "privacy-mode=both", "--set", "user-target-epsilon=6")
    shown = service.train(*options)
    assert "ε per user" in shown
    events = json.loads(service.lamella("privacy", "ledger", "chat", "--json"))["events"]
    assert events == 2 * (2 + 1)
    budget = json.loads(service.lamella("privacy", "budget", "chat", "--json"))
    assert (budget["budget_epsilon"], budget["rounds"]) == (6.0, 2)
    assert 5.5 < budget["epsilon"] <= 6.0
    (run,) = service.runs()
    service.lamella("privacy", "report", run["run_id"], "--out", str(tmp_path / "report"), "--audit-examples", "0")
    assert "The report holds" in service.lamella("privacy", "recompute", str(tmp_path / "report"))
    # The users' budget is spent: another run of the same model does not start.
    told = service.train("--rounds", "2", "--set", "privacy-mode=both", "--set", "user-target-epsilon=9", expect=1)
    assert "have a budget of epsilon 6" in told


def test_a_run_whose_devices_all_decline_fails_with_exit_code_1_and_says_why(service):
    told = service.train("--rounds", "1", "--set", "target-delta=0.5", "--set", "max-void-rounds=0", expect=1)
    assert "failed" in told
    (run,) = service.runs()
    assert run["status"] == "failed"
    rounds = service.run_facts(run["run_id"])["rounds"]
    assert rounds[0]["status"] == "void"
    assert all("no protection" in why for why in rounds[0]["failures"].values())


def test_a_killed_run_goes_on_where_it_was(service):
    process = service.start(*service.train_command, "--rounds", "3")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        runs = service.runs()
        if runs and service.run_facts(runs[0]["run_id"])["rounds"]:
            break
        time.sleep(1)
    # The SuperLink is left over, as after a kill -9 of the command alone: the next one must end it.
    tree = psutil.Process(process.pid).children(recursive=True)
    others = [child for child in tree if "flower-superlink" not in " ".join(child.cmdline())]
    process.kill()
    for child in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.communicate()
    run_id = runs[0]["run_id"]
    done = len(service.run_facts(run_id)["rounds"])
    assert 1 <= done <= 3
    service.lamella("train", "federated", "--simulate", "2", "--resume", run_id)
    facts = service.run_facts(run_id)
    assert facts["status"] == "completed"
    assert [r["round"] for r in facts["rounds"]] == [1, 2, 3]
    assert flower_processes(service.home) == []


def test_flowers_own_command_runs_the_app(service, tmp_path):
    fleet, data = tmp_path / "fleet", f"jsonl:{service.home / 'text'}"
    service.lamella("fleet", "make", "--model", "chat", "--devices", "2", "--data", data, "--out", str(fleet))
    port = service.port + 1
    environment = service.environment | {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    config = f'fleet="{fleet}" run-name="plain" data="{data}" num-server-rounds=1 local-steps=1 max-length=32'
    try:
        done = subprocess.run(
            ["flwr", "run", ".", "--stream", "--run-config", config + " evaluation-examples=8"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert [run["run_id"] for run in service.runs()] == ["plain"], done.stdout[-3000:]
        facts = service.run_facts("plain")
        assert facts["status"] == "completed", done.stdout
        assert facts["rounds"][0]["replies"] == 2
    finally:
        # Flower leaves its local SuperLink running on purpose.
        for process in psutil.process_iter(["cmdline"]):
            if "flower-superlink" in " ".join(process.info["cmdline"] or []) and str(port) in process.info["cmdline"]:
                end_process_tree(process.pid)


def test_interrupting_a_run_ends_every_process(service):
    # A budget for all rounds: a run that spends its budget ends by itself.
    process = service.start(*service.train_command, "--rounds", "200", "--set", "budget-rounds=200")
    deadline = time.monotonic() + 120
    while not flower_processes(service.home) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(5)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert json.loads(service.lamella("runs", "list", "--json")) is not None
