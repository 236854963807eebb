"""A release's statement: what is signed, who can read it, and whether it follows from its ledger."""

import base64
import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from securesystemslib.signer import CryptoSigner
from simulators.share_events import event_in_shares

from privacy import PrivacyEvent, StatementError, UnreadableKeyError
from privacy.__main__ import main
from privacy.accountant import epsilon
from privacy.attestation import (
    MAX_ENVELOPE_BYTES,
    Guarantee,
    PrivacyStatement,
    ReleaseFacts,
    ed25519_key,
    excess_over,
    overspent_on_base,
    read_key,
    seal,
    statement_path,
    unseal,
)
from privacy.attestation.evidence import differences_from, statement_of
from privacy.base_ledgers import BaseLedgers, OtherModel
from privacy.budget import PrivacyBudget
from privacy.report import AuditReport, RunFacts, build_report, write_report
from privacy.report.pages import to_markdown
from privacy.user_level import user_epsilon

DELTA = 1e-5
MANIFEST = b'{"a": "manifest"}'
SIGNER = CryptoSigner.generate_ed25519()


def event(device: str, server_round: int, *, noise: float = 1.1) -> PrivacyEvent:
    return PrivacyEvent(
        event_id=uuid4().hex,
        run_id="run-1",
        server_round=server_round,
        device_id=device,
        noise_multiplier=noise,
        sampling_probability=0.05,
        steps=20,
        clipping_norm=1.0,
        target_delta=DELTA,
        recorded_at=datetime(2026, 3, 1, tzinfo=UTC),
    )


def user_event(server_round: int, *devices: str) -> PrivacyEvent:
    return PrivacyEvent(
        run_id="run-1",
        server_round=server_round,
        privacy_unit="user",
        population="chat",
        devices=devices,
        cohort_rule="fixed",
        mechanism="gaussian_capped",
        noise_multiplier=3.0,
        sampling_probability=1.0,
        steps=1,
        clipping_norm=1.0,
        target_delta=1e-6,
        recorded_at=datetime(2026, 3, 1, tzinfo=UTC),
    )


BOTH = (event("a", 1), user_event(1, "a", "b"), event("b", 1), event("a", 2), user_event(2, "a"))


def report_of(events: tuple[PrivacyEvent, ...], base: BaseLedgers | None = None) -> AuditReport:
    return build_report(
        title="Privacy report",
        run=RunFacts(
            run_id="run-1",
            model="chat",
            release="v2",
            base_hash="e" * 64,
            rounds_planned=2,
            rounds_completed=2,
            devices_enrolled=2,
        ),
        events=events,
        target_delta=DELTA,
        budget=PrivacyBudget(target_epsilon=8.0, target_delta=DELTA),
        user_budget=PrivacyBudget(target_epsilon=6.0, target_delta=1e-6),
        base=base,
        provenance={},
    )


def statement(report: AuditReport, *, manifest_sha256: str = "f" * 64) -> PrivacyStatement:
    return statement_of(
        report,
        release=ReleaseFacts(model="chat", version=2, tree_hash="d" * 64, base_hash="e" * 64, run_id="run-1"),
        manifest_path="manifests/chat/2.json",
        manifest_sha256=manifest_sha256,
    )


def key_file(folder: Path, signer: CryptoSigner = SIGNER) -> Path:
    path = folder / "releases.pub"
    pem = signer.public_key.to_dict()["keyval"]["public"]
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(pem))
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def write_folder(folder: Path, events: tuple[PrivacyEvent, ...] = BOTH) -> Path:
    """A report with its signed statement, as an auditor is given it."""
    report = report_of(events)
    write_report(report, folder)
    (folder / "statement.json").write_bytes(seal(statement(report).to_bytes(), [SIGNER]))
    return folder


# --- what is signed


def test_a_statement_is_an_in_toto_statement_in_a_dsse_envelope() -> None:
    envelope = json.loads(seal(statement(report_of(BOTH)).to_bytes(), [SIGNER]))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert [signature["keyid"] for signature in envelope["signatures"]] == [SIGNER.public_key.keyid]
    payload = json.loads(base64.b64decode(envelope["payload"]))
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["predicateType"] == "urn:lamella:privacy-statement:1"
    assert payload["subject"] == [{"name": "manifests/chat/2.json", "digest": {"sha256": "f" * 64}}]
    told = {one["privacy_unit"]: (one["delta"], one["budget_epsilon"]) for one in payload["predicate"]["guarantees"]}
    assert told == {"example": (DELTA, 8.0), "user": (1e-6, 6.0)}
    assert statement_path("chat", 2) == "manifests/chat/2.privacy.json"


def test_its_signature_holds_for_anyone_who_follows_the_standard() -> None:
    """Checked with nothing but the pre-authentication encoding of DSSE and an ed25519 library."""
    envelope = json.loads(seal(statement(report_of(BOTH)).to_bytes(), [SIGNER]))
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(SIGNER.public_key.keyval["public"]))
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)


def test_where_devices_made_the_noise_the_server_is_trusted_with_less(tmp_path: Path) -> None:
    events = (event_in_shares(1), event_in_shares(2, devices=17))
    told = statement(report_of(events)).predicate
    (guarantee,) = told.guarantees
    assert "the server too" in guarantee.holds_against
    assert "no more than 1 of a round's devices" in guarantee.holds_against
    assert "RDP" in told.evidence.accountant
    assert "the server, which saw each contribution" in (
        statement(report_of((*events, user_event(3, "a")))).predicate.guarantees[0].holds_against
    )
    folder = write_folder(tmp_path / "auditor", events)
    assert main(["verify", str(folder), "--key", str(key_file(tmp_path))]) == 0
    cheaper = (events[0], event_in_shares(2, devices=17, noise=1.9))
    assert any("ε per user" in one for one in differences_from(statement(report_of(events)), cheaper))


def test_no_device_is_named() -> None:
    raw = statement(report_of((event("very-secret-device", 1),))).to_bytes()
    assert b"very-secret-device" not in raw


def test_what_was_signed_is_read_again_and_infinity_survives() -> None:
    told = statement(report_of((event("a", 1, noise=0.0), *BOTH)))
    assert told.predicate.guarantees[0].epsilon == math.inf
    assert told.predicate.verdict == "no_guarantee"
    assert PrivacyStatement.from_bytes(unseal(seal(told.to_bytes(), [SIGNER]), [SIGNER.public_key])) == told


def test_a_later_field_is_passed_over_and_another_kind_of_statement_is_not_read() -> None:
    values = json.loads(statement(report_of(BOTH)).to_bytes())
    values["predicate"]["guarantees"][0]["later"] = {"a": 1}
    assert PrivacyStatement.from_bytes(json.dumps(values).encode()).predicate.guarantees
    for change in (
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"_type": "other"},
        {"subject": []},
        {"subject": values["subject"] * 2},
    ):
        with pytest.raises(StatementError, match="not a privacy statement"):
            PrivacyStatement.from_bytes(json.dumps(values | change).encode())


@pytest.mark.parametrize("epsilon", [math.nan, -1.0, "NaN", "nothing"])
def test_an_epsilon_that_is_no_number_is_refused(epsilon: object) -> None:
    with pytest.raises(ValidationError):
        Guarantee.model_validate({"privacy_unit": "user", "epsilon": epsilon, "delta": 1e-5, "holds_against": "all"})


# --- the envelope


@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_nonsense_is_refused_in_words(raw: bytes) -> None:
    with pytest.raises(StatementError):
        unseal(raw, [SIGNER.public_key])


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_an_envelope_of_other_values_is_refused(value: object) -> None:
    for name in ("payload", "payloadType", "signatures"):
        envelope = json.loads(seal(b"{}", [SIGNER])) | {name: value}
        with pytest.raises(StatementError):
            unseal(json.dumps(envelope).encode(), [SIGNER.public_key])


def test_a_wrong_key_a_changed_payload_and_another_type_are_refused() -> None:
    raw = seal(statement(report_of(BOTH)).to_bytes(), [SIGNER])
    with pytest.raises(StatementError, match=f"signed by {SIGNER.public_key.keyid[:8]}"):
        unseal(raw, [CryptoSigner.generate_ed25519().public_key])
    # The right id over another key: the id proves nothing.
    other = ed25519_key(SIGNER.public_key.keyid, CryptoSigner.generate_ed25519().public_key.keyval["public"])
    with pytest.raises(StatementError, match="does not hold"):
        unseal(raw, [other])
    with pytest.raises(StatementError, match="does not hold"):
        unseal(raw, [])
    envelope = json.loads(raw)
    changed = base64.b64encode(base64.b64decode(envelope["payload"]).replace(b"within_budget", b"no_budget"))
    with pytest.raises(StatementError, match="does not hold"):
        unseal(json.dumps(envelope | {"payload": changed.decode()}).encode(), [SIGNER.public_key])
    with pytest.raises(StatementError, match="of type"):
        unseal(json.dumps(envelope | {"payloadType": "text/plain"}).encode(), [SIGNER.public_key])


def test_an_envelope_is_bounded_on_both_sides() -> None:
    with pytest.raises(StatementError, match="devices read at most"):
        seal(b"x" * MAX_ENVELOPE_BYTES, [SIGNER])
    with pytest.raises(StatementError, match="are read"):
        unseal(b" " * (MAX_ENVELOPE_BYTES + 1), [SIGNER.public_key])
    with pytest.raises(StatementError, match="at least one key"):
        seal(b"{}", [])


def test_a_file_that_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    with pytest.raises(UnreadableKeyError, match="not a readable"):
        read_key(path)
    path.write_text("nonsense")
    with pytest.raises(UnreadableKeyError, match="not a readable"):
        read_key(path)
    public = generate_private_key(SECP256R1()).public_key()
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UnreadableKeyError, match="not an ed25519"):
        read_key(path)
    assert read_key(key_file(tmp_path)).keyid == SIGNER.public_key.keyid


# --- the limit


def test_each_unit_is_held_to_the_limit_by_itself() -> None:
    told = statement(report_of(BOTH))
    example, user = (guarantee.epsilon for guarantee in told.predicate.guarantees)
    assert excess_over(max(example, user), told) is None
    assert "per example" in str(excess_over(example * 0.99, told)) or user > example
    assert "above" in str(excess_over(min(example, user), told))
    assert excess_over(0.001, statement(report_of(()))) is None  # nothing of any device is in it


# --- does it follow from the ledger?


def test_a_statement_follows_from_its_ledger() -> None:
    assert differences_from(statement(report_of(BOTH)), BOTH) == ()
    assert differences_from(statement(report_of(())), ()) == ()


@pytest.mark.parametrize("order", [1, -1], ids=["afterwards", "before"])
def test_a_run_without_noise_of_the_devices_own_ends_every_promise_per_example(
    order: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its updates went to the server as they were; what other runs cost per example says nothing about them."""
    runs = [BOTH, (user_event(3, "a", "c").model_copy(update={"run_id": "bare"}),)]
    events = tuple(event for run in runs[::order] for event in run)
    report = report_of(events)
    signed = statement(report)
    assert [one.privacy_unit for one in signed.predicate.guarantees] == ["user"]
    assert "server included" not in signed.predicate.claim
    assert "updates of bare left without the devices' own noise" in signed.predicate.claim
    assert differences_from(signed, events) == ()
    # Who still signs a promise per example is found out.
    assert differences_from(statement(report_of(BOTH)), events)
    folder = write_folder(tmp_path / "release", events)
    assert main(["verify", str(folder), "--key", str(key_file(tmp_path))]) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    "ledger",
    [
        BOTH[:-1],
        (*BOTH, event("c", 1)),
        (BOTH[0], BOTH[2], BOTH[3]),
        (*BOTH[:3], event("a", 2, noise=0.7), BOTH[4]),
        (),
    ],
    ids=["one-less", "one-more", "no-users", "less-noise", "empty"],
)
def test_another_ledger_is_found_out(ledger: tuple[PrivacyEvent, ...]) -> None:
    assert differences_from(statement(report_of(BOTH)), ledger)


def fork_event(server_round: int, *devices: str) -> PrivacyEvent:
    return user_event(server_round, *devices).model_copy(update={"run_id": "fork-run", "population": "fork"})


FORK = OtherModel(
    model="fork",
    events=(fork_event(1, "x"), event("a", 1).model_copy(update={"run_id": "fork-run"}), fork_event(2, "x")),
    runs=("fork-run",),
    counts_users=True,
)


def with_fork(*forks: OtherModel) -> PrivacyStatement:
    return statement(report_of(BOTH, BaseLedgers(bases=("e" * 64,), others=forks)))


def test_what_other_models_on_the_base_cost_follows_from_their_ledgers() -> None:
    told = with_fork(FORK)
    assert told.predicate.base is not None
    bills = {one.privacy_unit: one.epsilon for one in told.predicate.base.guarantees}
    four_rounds = [user_event(number, "a") for number in (1, 2, 3, 4)]
    assert bills["user"] == pytest.approx(user_epsilon(four_rounds, target_delta=1e-6), rel=1e-6)
    assert bills["example"] == pytest.approx(epsilon([event("a", n) for n in (1, 2, 3)], target_delta=DELTA), rel=1e-6)
    assert differences_from(told, BOTH, (FORK,)) == ()
    assert "with what other models on its base (fork) cost" in told.predicate.claim


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ((), "ledger of fork, on the same base: stated 3 events"),
        ((replace(FORK, events=FORK.events[:2]),), "found 2 events"),
        ((FORK, replace(FORK, model="third")), "ledger of third, on the same base: stated none"),
        ((replace(FORK, counts_users=False),), "ε per user on the base"),
        ((replace(FORK, runs=("another",)),), "ε per example on the base"),
    ],
    ids=["missing", "cut", "another", "users-left-out", "runs-left-out"],
)
def test_another_ledger_on_the_base_is_found_out(others: tuple[OtherModel, ...], said: str) -> None:
    assert said in "; ".join(differences_from(with_fork(FORK), BOTH, others))


def test_a_model_that_is_kept_apart_costs_its_devices_alone() -> None:
    apart = replace(FORK, counts_users=False)
    base = with_fork(apart).predicate.base
    assert base is not None
    own = {one.privacy_unit: one.epsilon for one in with_fork(apart).predicate.guarantees}
    bills = {one.privacy_unit: one.epsilon for one in base.guarantees}
    assert bills["user"] == own["user"]
    assert bills["example"] > own["example"]


def test_a_budget_must_cover_what_the_base_has_cost() -> None:
    many = replace(FORK, events=tuple(fork_event(number, "x") for number in range(1, 12)))
    told = with_fork(many)
    assert told.predicate.verdict == "over_budget"
    assert "above its budget of 6" in str(overspent_on_base(told))
    assert overspent_on_base(with_fork(FORK)) is None
    assert overspent_on_base(statement(report_of(BOTH))) is None
    page = to_markdown(report_of(BOTH, BaseLedgers(bases=("e" * 64,), others=(many,))))
    assert "Over budget:" in page
    assert "ledger-of-MODEL.jsonl" in page


def test_a_prettier_epsilon_is_found_out() -> None:
    told = statement(report_of(BOTH))
    pretty = told.predicate.guarantees[0].model_copy(update={"epsilon": told.predicate.guarantees[0].epsilon - 0.1})
    lied = told.model_copy(
        update={
            "predicate": told.predicate.model_copy(update={"guarantees": (pretty, told.predicate.guarantees[1])}),
        }
    )
    found = differences_from(lied, BOTH)
    assert len(found) == 1
    assert found[0].startswith("ε per example")


# --- offline, by anyone


def test_anyone_verifies_a_folder_with_the_public_key_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "report")
    assert main(["verify", str(folder), "--key", str(key_file(tmp_path))]) == 0
    told = capsys.readouterr().out
    assert told.startswith("The signature holds.\nchat v2, tree ")
    assert "per user: ε = " in told
    assert told.endswith("The statement holds.\n")


def _tamper(name: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        assert old in raw
        (folder / name).write_bytes(raw.replace(old, new, 1))

    return change


def _put_other_statement(folder: Path) -> None:
    other = statement(report_of(BOTH[:3]))
    (folder / "statement.json").write_bytes(seal(other.to_bytes(), [SIGNER]))


def _put_other_report(folder: Path) -> None:
    write_report(report_of(BOTH), folder)  # written at another time, and nothing else is different


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            _tamper("report.json", b'"title": "Privacy report"', b'"title": "Another title"'),
            "report.json is not the file",
        ),
        (_tamper("ledger.jsonl", b'"noise_multiplier":1.1', b'"noise_multiplier":1.2'), "does not follow"),
        (_tamper("statement.json", b'"sig":"', b'"sig":"AAAA'), "signature does not hold"),
        (_put_other_statement, "ledger.jsonl is not the file that the statement names"),
        (_put_other_report, "report.json is not the file"),
        (lambda folder: (folder / "manifest.json").write_bytes(MANIFEST), "not the release"),
    ],
    ids=["report", "ledger", "signature", "another-statement", "another-report", "another-release"],
)
def test_what_was_tampered_with_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], why: str
) -> None:
    folder = write_folder(tmp_path / "report")
    change(folder)
    assert main(["verify", str(folder), "--key", str(key_file(tmp_path))]) == 1
    told = capsys.readouterr().out
    assert why in told
    assert told.endswith("The statement does NOT hold.\n")


def test_another_key_does_not_verify_and_no_key_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "report")
    other = key_file(tmp_path, CryptoSigner.generate_ed25519())
    assert main(["verify", str(folder), "--key", str(other)]) == 1
    assert "signature does not hold" in capsys.readouterr().out
    assert main(["verify", str(folder), "--key", str(tmp_path / "absent.pub")]) == 2
    assert "not a readable public key" in capsys.readouterr().err
    (folder / "statement.json").unlink()
    assert main(["verify", str(folder), "--key", str(key_file(tmp_path))]) == 2
