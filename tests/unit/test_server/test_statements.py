"""The privacy gate: no release without a signed statement that follows from the ledger and keeps to the policy."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from simulators.server_home import MODEL, Home, make_event, make_user_event, write_adapter, write_base
from simulators.share_events import event_in_shares
from simulators.tuf_client import folder_getter, updater_for
from sqlalchemy import text
from typer.testing import CliRunner

from delta_updates import base_hash, scan_tree
from privacy import PrivacyEvent
from privacy.__main__ import main
from privacy.attestation import PrivacyStatement, excess_over, statement_path, unseal
from privacy.budget import PrivacyBudget
from server.cli.main import app
from server.errors import DatabaseError, GateRefusedError, InvalidRecordError, NotFoundError, PublishingError
from server.publishing import Gate, create_candidate, import_base, publish
from server.registry import VersionRecord
from server.signing import SignedMetadata

RUN = "run-1"
PASSED = Gate(margin=0.1).judge(candidate_loss=2.0, parent_loss=2.0)


def record(home: Home, run_id: str, events: Iterable[PrivacyEvent], **recipe: object) -> None:
    """A run with one round that spent `events`."""
    if run_id not in {run.run_id for run in home.registry.runs()}:
        base = home.registry.version(MODEL, 1)
        home.registry.create_run(
            run_id,
            model=MODEL,
            recipe={"model": MODEL, "target-epsilon": 8.0} | recipe,
            base_version=1,
            base_hash=base.manifest.base_hash,
            parent_version=1,
        )
    home.registry.record_round(
        run_id,
        1 + len(home.registry.rounds(run_id)),
        status="released",
        replies=1,
        failures={},
        held_out_loss=None,
        events=list(events),
        artifacts={},
        facts={},
    )


def candidate_of(home: Home, run_id: str, *, seed: int = 1) -> VersionRecord:
    """A candidate that a run made."""
    adapter = home.folder / f"adapter-{seed}"
    write_adapter(adapter, seed=seed)
    return create_candidate(
        home.registry, home.artifacts, model=MODEL, adapter=adapter, parent=1, facts={}, run_id=run_id
    )


def release(home: Home, number: int, *, max_epsilon: float = 10.0) -> VersionRecord:
    return publish(
        home.registry,
        home.artifacts,
        home.metadata,
        model=MODEL,
        version=number,
        gate=PASSED,
        work=home.settings.work_dir,
        max_epsilon=max_epsilon,
    ).version


def statement_in(home: Home, number: int) -> PrivacyStatement:
    """The statement of a version as it is stored, its signature checked."""
    found = home.registry.statement(MODEL, number)
    assert found is not None
    return PrivacyStatement.from_bytes(unseal(home.artifacts.read_bytes(found.sha256), home.metadata.releases_keys()))


@pytest.fixture
def trained(home: Home) -> Home:
    """v1 released, and a run on it that charged a device and the users of the model."""
    home.base()
    home.publish(1, loss=None)
    record(home, RUN, [make_event(RUN, 1), make_user_event(RUN, 1, "a", "b")])
    home.registry.set_user_budget(MODEL, PrivacyBudget(target_epsilon=6.0, target_delta=1e-6))
    return home


def test_a_release_has_a_signed_statement_that_devices_find_beside_its_manifest(trained: Home, tmp_path: Path) -> None:
    candidate = candidate_of(trained, RUN)
    assert release(trained, candidate.number).state == "released"
    stated = statement_in(trained, 2)
    assert stated.predicate.release.run_id == RUN
    assert {one.privacy_unit: one.budget_epsilon for one in stated.predicate.guarantees} == {"example": 8, "user": 6}
    assert stated.predicate.evidence.ledger_head == trained.registry.verify_privacy_chain(MODEL)[-1]
    root = SignedMetadata.open(trained.settings).root_bytes()
    updater = updater_for(folder_getter(trained.settings.home / "metadata"), tmp_path / "device", root=root)
    info = updater.get_targetinfo(statement_path(MODEL, 2))
    kept = trained.registry.statement(MODEL, 2)
    assert info is not None
    assert kept is not None
    assert info.custom["keyid"] == kept.keyid == trained.metadata.releases_keys()[0].keyid
    assert (info.length, info.hashes["sha256"]) == (kept.length, kept.sha256)
    assert trained.registry.target(statement_path(MODEL, 2)) == kept.target
    # The report and the ledger that it names are kept with it.
    assert json.loads(trained.artifacts.read_bytes(kept.report_sha256))["verdict"] == "within_budget"
    assert len(trained.artifacts.read_bytes(kept.ledger_sha256).splitlines()) == 2


def test_a_run_whose_devices_made_the_noise_is_released_by_the_same_gate(trained: Home) -> None:
    record(trained, RUN, [event_in_shares(2, run_id=RUN, population=MODEL, noise=4.0)])
    candidate = candidate_of(trained, RUN)
    assert release(trained, candidate.number).state == "released"
    stated = statement_in(trained, candidate.number).predicate
    # One sum had the server's noise: the weaker of the two holds.
    assert "which saw each contribution" in next(g for g in stated.guarantees if g.privacy_unit == "user").holds_against
    assert "per user RDP" in stated.evidence.accountant
    record(trained, RUN, [event_in_shares(3, run_id=RUN, population=MODEL, noise=0.8)])
    with pytest.raises(GateRefusedError, match="over budget"):
        release(trained, candidate_of(trained, RUN, seed=2).number)


def test_a_base_says_that_nothing_of_devices_is_in_it(home: Home) -> None:
    home.base()
    home.publish(1, loss=None)
    stated = statement_in(home, 1)
    assert stated.predicate.verdict == "no_events"
    assert stated.predicate.guarantees == ()


def test_what_is_not_released_is_not_handed_out(trained: Home) -> None:
    candidate = candidate_of(trained, RUN)
    with pytest.raises(GateRefusedError):
        release(trained, candidate.number, max_epsilon=0.01)
    assert trained.registry.statement(MODEL, 2) is not None
    assert trained.registry.target(statement_path(MODEL, 2)) is None
    assert statement_path(MODEL, 2) not in trained.metadata.signed_files()


@pytest.mark.parametrize(
    ("events", "max_epsilon", "why"),
    [
        ([make_event(RUN, 2)], 0.5, "per example"),
        ([make_user_event(RUN, 2, "a")], 1.0, "above 1"),
        ([make_event(RUN, 2, device_id="b").model_copy(update={"noise_multiplier": 0.0})], math.inf, "no privacy guar"),
        ([make_event(RUN, 2).model_copy(update={"steps": 4000})], math.inf, "verdict is over budget"),
    ],
    ids=["example", "user", "no-noise", "over-its-own-budget"],
)
def test_what_exceeds_the_policy_is_rejected_for_good(
    trained: Home, events: list[PrivacyEvent], max_epsilon: float, why: str
) -> None:
    record(trained, RUN, events)
    candidate = candidate_of(trained, RUN)
    with pytest.raises(GateRefusedError, match=why):
        release(trained, candidate.number, max_epsilon=max_epsilon)
    refused = trained.registry.version(MODEL, candidate.number)
    assert refused.state == "rejected"
    assert why in refused.reason
    assert trained.registry.packages(MODEL, candidate.number) == ()  # refused before hours of building


def test_the_statement_made_first_is_judged_again_after_a_crash(trained: Home) -> None:
    candidate = candidate_of(trained, RUN)
    broken = replace(trained)
    with pytest.raises(PublishingError, match="stop"):
        publish(
            broken.registry,
            broken.artifacts,
            broken.metadata,
            model=MODEL,
            version=candidate.number,
            gate=PASSED,
            work=broken.settings.work_dir,
            on_step=stop,
        )
    first = trained.registry.statement(MODEL, candidate.number)
    # Another run spends meanwhile: what was signed still follows from the ledger up to its own head.
    record(trained, "run-2", [make_event("run-2", 1, device_id="later")])
    release(trained, candidate.number)
    assert trained.registry.statement(MODEL, candidate.number) == first
    assert statement_in(trained, candidate.number).predicate.evidence.events == 2


def stop(_text: str, _done: int, _total: int) -> None:
    raise PublishingError("stop")


def cut_off(home: Home, number: int) -> None:
    """Publishing that ends right after the statement was made."""
    with pytest.raises(PublishingError, match="stop"):
        publish(
            home.registry,
            home.artifacts,
            home.metadata,
            model=MODEL,
            version=number,
            gate=PASSED,
            work=home.settings.work_dir,
            on_step=stop,
        )


def test_events_of_the_run_that_came_after_the_statement_are_not_forgotten(trained: Home) -> None:
    candidate = candidate_of(trained, RUN)
    cut_off(trained, candidate.number)
    record(trained, RUN, [make_event(RUN, 2, device_id="b")])
    with pytest.raises(PublishingError, match="1 events of run run-1 are not in it"):
        release(trained, candidate.number)
    assert trained.registry.version(MODEL, candidate.number).state == "candidate"


def test_another_versions_statement_does_not_vouch(trained: Home) -> None:
    first, second = candidate_of(trained, RUN), candidate_of(trained, RUN, seed=2)
    cut_off(trained, first.number)
    cut_off(trained, second.number)
    with trained.registry._connection() as connection:
        connection.execute(
            text("UPDATE privacy_statements SET sha256 = (SELECT sha256 FROM privacy_statements WHERE version = :one)"),
            {"one": first.number},
        )
    with pytest.raises(PublishingError, match="it is about version 2, not 3; it is about tree"):
        release(trained, second.number)


def test_a_statement_that_another_key_signed_is_not_released(trained: Home) -> None:
    from securesystemslib.signer import CryptoSigner

    from privacy.attestation import seal

    candidate = candidate_of(trained, RUN)
    cut_off(trained, candidate.number)
    thief = CryptoSigner.generate_ed25519()
    forged = trained.artifacts.put_bytes(seal(statement_in(trained, candidate.number).to_bytes(), [thief]))
    with trained.registry._connection() as connection:
        connection.execute(
            text(
                "UPDATE privacy_statements SET sha256 = :forged, keyid = :keyid, public_key = :public WHERE version = 2"
            ),
            {"forged": forged, "keyid": thief.public_key.keyid, "public": thief.public_key.keyval["public"]},
        )
    with pytest.raises(PublishingError, match="signature does not hold"):
        release(trained, candidate.number)


def test_a_ledger_that_was_changed_makes_no_statement(trained: Home) -> None:
    candidate = candidate_of(trained, RUN)
    with trained.registry._connection() as connection:
        connection.execute(text("UPDATE privacy_events SET event = REPLACE(event, '1.1', '4.4')"))
    with pytest.raises(DatabaseError, match="was changed"):
        release(trained, candidate.number)


def test_a_ledger_changed_with_its_chain_no_longer_fits_the_statement(trained: Home) -> None:
    candidate = candidate_of(trained, RUN)
    cut_off(trained, candidate.number)
    with trained.registry._connection() as connection:
        connection.execute(text("UPDATE privacy_events SET event = REPLACE(event, '1.1', '0.9')"))
    with pytest.raises(PublishingError, match="does not hold: head of the ledger"):
        release(trained, candidate.number)


def test_older_versions_retire_with_their_statements(home: Home) -> None:
    home.metadata = SignedMetadata.open(
        home.settings.model_copy(update={"signed_versions": 1}), release_keys=home.metadata._release_keys
    )
    home.base()
    home.publish(1, loss=None)
    for number in (2, 3, 4):
        home.candidate(number, parent=1)
        home.publish(number)
    signed = {path for path in home.metadata.signed_files() if path.startswith("manifests/")}
    # The newest, and the one that the channel offered until now.
    assert signed == {f"manifests/{MODEL}/{n}.json" for n in (3, 4)} | {statement_path(MODEL, n) for n in (3, 4)}
    assert home.metadata.signed_versions(MODEL) == {3, 4}


def test_an_auditor_is_given_a_folder_that_verifies_by_itself(
    trained: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    release(trained, candidate_of(trained, RUN).number)
    folder, settings = trained.folder / "for-the-auditor", trained.settings
    environment = {"LAMELLA_HOME": str(settings.home), "LAMELLA_OFFLINE_KEYS": str(settings.offline_keys)}
    told = CliRunner().invoke(app, ["privacy", "statement", MODEL, "--out", str(folder)], env=environment)
    assert told.exit_code == 0, told.output
    assert {path.name for path in folder.iterdir()} == {
        *("statement.json", "report.json", "report.html", "report.md", "ledger.jsonl", "manifest.json")
    }
    (key,) = settings.offline_keys.glob("releases-*.pub")
    assert main(["verify", str(folder), "--key", str(key)]) == 0
    (folder / "manifest.json").write_bytes(trained.registry.version(MODEL, 1).manifest.to_bytes())
    checked = CliRunner().invoke(app, ["privacy", "verify", str(folder), "--key", str(key)])
    assert checked.exit_code == 1
    assert "not the release that the statement is about" in checked.output + capsys.readouterr().out
    absent = CliRunner().invoke(app, ["privacy", "statement", MODEL, "--version", "9"], env=environment)
    assert isinstance(absent.exception, NotFoundError)


def train_fork(home: Home, rounds: int, *, base: VersionRecord | None = None) -> None:
    """Another model on the base of the first one, or on `base`: its users and one of its devices are charged."""
    made = base or home.registry.version(MODEL, 1)
    manifest = made.manifest.model_copy(update={"model": "fork", "version": 1})
    home.registry.add_candidate(manifest)
    home.registry.create_run(
        "fork-run",
        model="fork",
        recipe={"model": "fork"},
        base_version=1,
        base_hash=manifest.base_hash,
        parent_version=1,
    )
    for number in range(1, rounds + 1):
        events = [make_user_event("fork-run", number, "x").model_copy(update={"population": "fork"})]
        home.registry.record_round(
            "fork-run",
            number,
            status="released",
            replies=1,
            failures={},
            held_out_loss=None,
            events=[*events, make_event("fork-run", number)],
            artifacts={},
            facts={},
        )


def test_a_release_states_what_other_models_on_its_base_cost(trained: Home, tmp_path: Path) -> None:
    train_fork(trained, 1)
    release(trained, candidate_of(trained, RUN).number)
    stated = statement_in(trained, 2).predicate
    own = {one.privacy_unit: one.epsilon for one in stated.guarantees}
    assert stated.base is not None
    together = {one.privacy_unit: one.epsilon for one in stated.base.guarantees}
    assert together["user"] > own["user"]
    assert together["example"] > own["example"]  # user-1 trained both, and is known again
    assert [(other.model, other.ledger_head) for other in stated.base.others] == [
        ("fork", trained.registry.verify_privacy_chain("fork")[-1])
    ]
    assert "other models on its base (fork)" in stated.claim
    folder = for_the_auditor(trained, tmp_path / "folder")
    (key,) = trained.settings.offline_keys.glob("releases-*.pub")
    assert (folder / "ledger-of-fork.jsonl").is_file()
    assert main(["verify", str(folder), "--key", str(key)]) == 0
    # The other ledger may have grown since, but not be another one, or be missing.
    lines = (folder / "ledger-of-fork.jsonl").read_bytes()
    (folder / "ledger-of-fork.jsonl").write_bytes((folder / "ledger.jsonl").read_bytes())
    assert main(["verify", str(folder), "--key", str(key)]) != 0
    (folder / "ledger-of-fork.jsonl").unlink()
    assert main(["verify", str(folder), "--key", str(key)]) != 0
    (folder / "ledger-of-fork.jsonl").write_bytes(lines)
    assert main(["verify", str(folder), "--key", str(key)]) == 0


def for_the_auditor(home: Home, folder: Path) -> Path:
    environment = {"LAMELLA_HOME": str(home.settings.home), "LAMELLA_OFFLINE_KEYS": str(home.settings.offline_keys)}
    told = CliRunner().invoke(app, ["privacy", "statement", MODEL, "--out", str(folder)], env=environment)
    assert told.exit_code == 0, told.output
    return folder


def test_a_release_whose_base_is_overspent_is_refused_unless_its_users_are_others(trained: Home) -> None:
    train_fork(trained, 7)
    with pytest.raises(GateRefusedError, match=r"base is overspent: with what other models on its base \(fork\) cost"):
        release(trained, candidate_of(trained, RUN).number, max_epsilon=math.inf)
    refused = trained.registry.version(MODEL, 2)
    assert refused.state == "rejected"
    assert "above its budget of 6" in refused.reason
    assert f"privacy budget {MODEL} --apart" in refused.reason
    budget = trained.registry.user_budget(MODEL)
    assert budget is not None
    trained.registry.set_user_budget(MODEL, budget, is_apart=True)
    assert release(trained, candidate_of(trained, RUN, seed=2).number, max_epsilon=math.inf).state == "released"


def test_a_device_holds_the_base_to_its_limit_too(trained: Home) -> None:
    train_fork(trained, 1)
    candidate = candidate_of(trained, RUN)
    release(trained, candidate.number)
    stated = statement_in(trained, candidate.number)
    own = max(one.epsilon for one in stated.predicate.guarantees)
    assert "other models on its base (fork)" in str(excess_over(own, stated))
    assert (
        excess_over(own, stated.model_copy(update={"predicate": stated.predicate.model_copy(update={"base": None})}))
        is None
    )


def test_a_merged_base_goes_on_with_the_bill_of_what_it_was_made_from(trained: Home) -> None:
    """Merging an adapter and starting anew, twice, makes nothing free."""
    merged = [make_merged(trained, seed, made_from) for seed, made_from in ((5, None), (6, 5))]
    train_fork(trained, 7, base=merged[-1])
    assert set(trained.registry.base_family(merged[-1].manifest.base_hash)) == {
        *(trained.registry.version(MODEL, 1).manifest.base_hash, *(one.manifest.base_hash for one in merged))
    }
    with pytest.raises(GateRefusedError, match="base is overspent"):
        release(trained, candidate_of(trained, RUN).number, max_epsilon=math.inf)
    # And the other way round: who trains what was merged starts from what the first base has cost.
    charged = trained.registry.user_events_for("fork", base_hash=merged[-1].manifest.base_hash)
    assert {event.population for event in charged} == {"fork", MODEL}


def make_merged(home: Home, seed: int, made_from: int | None) -> VersionRecord:
    """A base of other weights, said to be made from an earlier one."""
    tree = home.folder / f"base-{seed}"
    write_base(tree, seed=seed)
    origin = base_hash(scan_tree(home.folder / f"base-{made_from or 0}"))
    return import_base(home.registry, home.artifacts, model=f"merged-{seed}", tree=tree, made_from=origin)


def test_no_base_is_made_from_one_that_nobody_knows(trained: Home) -> None:
    tree = trained.folder / "base-7"
    write_base(tree, seed=7)
    with pytest.raises(InvalidRecordError, match="No version here has the base"):
        import_base(trained.registry, trained.artifacts, model="odd", tree=tree, made_from="0" * 64)
