"""`lamella privacy ledger` and `budget`: what the chain proves, and who changed a budget."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulators.server_home import MODEL, make_event, make_manifest, make_user_event
from typer.testing import CliRunner

from privacy import JsonlLedger, PrivacyEvent
from privacy.accountant import epsilon_by_device
from privacy.budget import PrivacyBudget
from privacy.user_level import user_epsilon
from server.cli.main import app
from server.config import Settings
from server.errors import DatabaseError, NotFoundError, RecipeError
from server.registry import Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A model whose two rounds were charged to both units."""
    monkeypatch.setenv("LAMELLA_HOME", str(tmp_path / "home"))
    opened = Registry.open(Settings(home=tmp_path / "home"))
    base = opened.add_candidate(make_manifest())
    opened.create_run(
        "run",
        model=MODEL,
        recipe={"model": MODEL},
        base_version=1,
        base_hash=base.manifest.base_hash,
        parent_version=None,
    )
    for server_round in (1, 2):
        record(opened, server_round)
    yield opened
    opened.close()


def record(registry: Registry, server_round: int) -> None:
    charge(
        registry,
        "run",
        make_event("run", server_round),
        make_user_event("run", server_round, "a", f"b{server_round}"),
    )


def charge(registry: Registry, run_id: str, *events: PrivacyEvent) -> None:
    registry.record_round(
        run_id,
        events[0].server_round,
        status="released",
        replies=2,
        failures={},
        held_out_loss=2.0,
        events=list(events),
        artifacts={},
        facts={},
    )


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["privacy", *arguments], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_the_exported_ledger_has_the_registrys_head(registry: Registry, tmp_path: Path) -> None:
    out = tmp_path / "ledger.jsonl"
    facts = json.loads(run("ledger", MODEL, "--out", str(out), "--json"))
    assert facts["events"] == 4
    ledger = JsonlLedger(out)
    assert ledger.events() == registry.privacy_events(model=MODEL)
    assert ledger.heads()[-1] == facts["head"]
    record(registry, 3)
    assert json.loads(run("ledger", MODEL, "--head", facts["head"], "--json"))["events_since_head"] == 2
    assert "2 of them since" in run("ledger", MODEL, "--head", facts["head"])


def test_a_changed_event_or_a_cut_end_is_found(registry: Registry) -> None:
    head = json.loads(run("ledger", MODEL, "--json"))["head"]
    with registry.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM privacy_chain WHERE position = 4")
        connection.exec_driver_sql("DELETE FROM privacy_events WHERE position = 4")
    assert "3 events" in run("ledger", MODEL)  # a sound chain: only the head from before tells
    with pytest.raises(DatabaseError, match="never had the head"):
        run("ledger", MODEL, "--head", head)
    with registry.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE privacy_events SET event = replace(event, '2.0', '20.0') WHERE position = 2")
    with pytest.raises(DatabaseError, match="at or before event 2"):
        run("ledger", MODEL)


def test_a_budget_is_set_by_somebody_and_shows_what_is_spent(registry: Registry) -> None:
    assert "No budget per user is set" in run("budget", MODEL)
    with pytest.raises(RecipeError, match="give both"):
        run("budget", MODEL, "--epsilon", "4")
    run("budget", MODEL, "--epsilon", "4", "--delta", "1e-6")
    facts = json.loads(run("budget", MODEL, "--epsilon", "5", "--json"))
    users = registry.privacy_events(model=MODEL, privacy_unit="user")
    assert (facts["budget_epsilon"], facts["delta"], facts["rounds"]) == (5.0, 1e-6, 2)
    assert facts["epsilon"] == user_epsilon(users, target_delta=1e-6) > 0
    assert "of 5 spent at" in run("budget", MODEL)
    changes = [entry for entry in registry.audit_log() if entry.action == "privacy.budget"]
    assert [entry.subject for entry in changes if entry.outcome == "done"] == [
        f"{MODEL}: 5 at 1e-06",
        f"{MODEL}: 4 at 1e-06",
    ]


def test_models_on_one_base_share_what_is_spent_unless_they_are_kept_apart(registry: Registry) -> None:
    base = registry.run("run").base_hash
    registry.set_user_budget(MODEL, PrivacyBudget(target_epsilon=20.0, target_delta=1e-6))
    alone = {(one["privacy_unit"], one["base_hash"]): one for one in spent_by(MODEL)}
    assert set(alone) == {(unit, where) for unit in ("example", "user") for where in (None, base)}
    assert alone["user", base]["epsilon"] == alone["user", None]["epsilon"]
    assert alone["user", base]["left"] == pytest.approx(20.0 - alone["user", base]["epsilon"])
    assert alone["example", None]["budget_epsilon"] == 8.0

    registry.add_candidate(make_manifest(model="fork"))
    registry.create_run(
        "fork-run", model="fork", recipe={"model": "fork"}, base_version=1, base_hash=base, parent_version=None
    )
    event = make_user_event("fork-run", 1, "x").model_copy(update={"population": "fork"})
    charge(registry, "fork-run", event, make_event("fork-run", 1))
    forked = {(one["privacy_unit"], one["base_hash"]): one for one in spent_by(MODEL)}
    assert forked["user", None] == alone["user", None]  # its own users have paid no more ...
    assert forked["user", base]["epsilon"] > alone["user", base]["epsilon"]  # ... but may be the other model's, too
    assert forked["user", base]["epsilon"] == pytest.approx(
        user_epsilon([make_user_event("run", number, "a") for number in (1, 2, 3)], target_delta=1e-6), rel=1e-5
    )
    # A device's examples are known again by its name, whatever the model is called.
    assert forked["example", base]["epsilon"] > alone["example", base]["epsilon"]
    assert f"{MODEL}, fork" in run("ledger", MODEL)
    assert "count too" in run("budget", MODEL)
    assert "kept apart" in run("budget", MODEL, "--apart")
    assert {(one["privacy_unit"], one["base_hash"]): one for one in spent_by(MODEL)}["user", base] == alone[
        "user", base
    ]
    assert registry.audit_log()[0].subject == f"{MODEL}: 20 at 1e-06, apart from other models"
    assert "count too" in run("budget", MODEL, "--shared")


def test_bases_made_from_one_another_are_one_in_what_was_spent(registry: Registry) -> None:
    base = registry.run("run").base_hash
    registry.set_user_budget(MODEL, PrivacyBudget(target_epsilon=20.0, target_delta=1e-6))
    merged = registry.add_candidate(make_manifest(base="b")).manifest
    before = spent_by(MODEL)
    registry.add_base_origin(merged.base_hash, made_from=base)
    registry.create_run(
        "later", model=MODEL, recipe={"model": MODEL}, base_version=2, base_hash=merged.base_hash, parent_version=None
    )
    charge(registry, "later", make_event("later", 1), make_user_event("later", 1, "a"))
    after = spent_by(MODEL)
    assert len(after) == len(before) == 4  # one row a unit for the model, one for its bases together
    assert "and 1 of its kin" in after[2]["whose"]
    assert after[2]["epsilon"] == after[0]["epsilon"] > before[2]["epsilon"]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
def test_kin_is_the_same_from_wherever_one_looks(registry: Registry, pairs: list[tuple[int, int]]) -> None:
    with registry.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM base_origins")
    known = {number: make_manifest(base=format(number, "x")) for number in range(8)}
    for manifest in known.values():
        registry.add_candidate(manifest.model_copy(update={"model": "kin"}))
    hashes = {number: manifest.base_hash for number, manifest in known.items()}
    for child, origin in pairs:
        registry.add_base_origin(hashes[child], made_from=hashes[origin])
    families = {one: registry.base_family(one) for one in hashes.values()}
    for one, family in families.items():
        assert family[0] == one
        assert len(set(family)) == len(family)
        assert all(set(families[other]) == set(family) for other in family)
    assert all(hashes[origin] in families[hashes[child]] for child, origin in pairs)


def spent_by(model: str) -> list[dict[str, Any]]:
    spent: list[dict[str, Any]] = json.loads(run("ledger", model, "--json"))["spent"]
    return spent


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nothing", "--epsilon", "1", "--delta", "1e-6"), NotFoundError),
        ((MODEL, "--epsilon", "0", "--delta", "1e-6"), RecipeError),
        ((MODEL, "--epsilon", "1", "--delta", "2"), RecipeError),
    ],
)
def test_what_cannot_be_a_budget_is_refused(registry: Registry, arguments: tuple[str, ...], error: type) -> None:
    with pytest.raises(error):
        run("budget", *arguments)
    assert registry.user_budget(MODEL) is None


def test_the_budget_of_examples_is_set_shown_and_held_to(registry: Registry) -> None:
    assert "No budget per example is set" in run("budget", MODEL, "--per", "example")
    assert spent_by(MODEL)[0]["budget_epsilon"] == 8.0  # of the recipe, which says nothing else
    run("budget", MODEL, "--per", "example", "--epsilon", "3", "--delta", "1e-5")
    facts = json.loads(run("budget", MODEL, "--per", "example", "--json"))
    bills = epsilon_by_device(registry.privacy_events(model=MODEL), target_delta=1e-5)
    assert facts == {
        "model": MODEL,
        "budget_epsilon": 3.0,
        "delta": 1e-5,
        "devices": len(bills),
        "epsilon": max(bills.values()),
    }
    assert spent_by(MODEL)[0]["budget_epsilon"] == 3.0
    assert "of 3 spent at" in run("budget", MODEL, "--per", "example")
    subjects = [entry.subject for entry in registry.audit_log() if entry.action == "privacy.budget"]
    assert f"{MODEL}, per example: 3 at 1e-05" in subjects
    with pytest.raises(RecipeError, match="about users"):
        run("budget", MODEL, "--per", "example", "--apart")
    with pytest.raises(NotFoundError):
        run("budget", "nothing", "--per", "example", "--epsilon", "1", "--delta", "1e-6")
