"""The parts of a run's audit on a tiny model: what each finds, what it leaves out, and what a fault changes."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy import stats
from simulators.models import write_base_version
from simulators.share_events import event_in_shares

from model import LoRAConfig, ModelConfig, initial_adapter
from privacy import PrivacyEvent
from privacy.audits import Finding, MembershipResult, Verdict
from privacy.audits.membership import strongest_of
from privacy.dp_sgd import DPSGDParameters
from privacy.noise_shares import ShareRule
from server.auditing import AuditPlan, RunAudit, replay, run_audit
from server.auditing.people import People
from server.auditing.secret_text import make_secrets, planted
from server.auditing.trainer import without_dp
from server.errors import AuditingError, GateRefusedError
from server.federation import user_level
from server.federation.recipe import Recipe
from server.gate import require_audit
from server.registry import RunRecord
from server.registry.audit_findings import FindingRecord

PLAN = AuditPlan(members=60, canaries=300, attempts=4, secrets=3, repeats=2, candidates=12)
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
DEVICES = 3


def silent(_what: str, _done: int, _total: int) -> None:
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A simulated fleet of three people with text of their own, and people who are held out."""
    home = tmp_path_factory.mktemp("auditing")
    fleet = home / "fleet"
    write_base_version(fleet / "tree")
    (fleet / "data" / "held_out").mkdir(parents=True)
    for n in range(DEVICES + 2):
        lines = [
            {"prompt": f"question {i} of {n}", "completion": f"so {i} and {n} are {i * n} to me"} for i in range(40)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        where = fleet / "data" / ("held_out" if n >= DEVICES else "")
        (where / f"user{n}.jsonl").write_text(text, encoding="utf-8")
        if n < DEVICES:
            (fleet / "devices" / str(n)).mkdir(parents=True)
            (fleet / "devices" / str(n) / "training_id").write_text(f"device{n}", encoding="ascii")
    users = {"users": [f"user{n}" for n in range(DEVICES)], "data": "x"}
    (fleet / "fleet.json").write_text(json.dumps(users), encoding="utf-8")
    return home


def example_event(device: int, server_round: int, *, noise: float = 1.0) -> PrivacyEvent:
    return PrivacyEvent(
        run_id="run",
        server_round=server_round,
        device_id=f"device{device}",
        noise_multiplier=noise,
        sampling_probability=0.3,
        steps=4,
        clipping_norm=1.0,
        target_delta=1e-5,
        recorded_at=STARTED,
    )


def user_event(server_round: int) -> PrivacyEvent:
    return PrivacyEvent(
        run_id="run",
        server_round=server_round,
        privacy_unit="user",
        population="chat",
        devices=("device0", "device1"),
        cohort_rule="fixed",
        mechanism="gaussian_capped",
        noise_multiplier=2.0,
        sampling_probability=1.0,
        steps=1,
        clipping_norm=0.5,
        target_delta=1e-5,
        recorded_at=STARTED,
    )


def audit_of(folder, *, events, has_fleet=True, **recipe) -> RunAudit:
    fleet = folder / "fleet"
    values = {"rank": 8, "alpha": 16.0, "local_steps": 4, "batch_size": 8, "max_length": 32, "max_examples": 40}
    where = {"fleet": str(fleet)} if has_fleet else {}
    chosen = Recipe(model="chat", data=f"jsonl:{fleet / 'data'}", **(values | where | recipe))
    config = ModelConfig.from_json((fleet / "tree" / "base" / "config.json").read_bytes())
    lora = LoRAConfig(rank=chosen.rank, alpha=chosen.alpha, dropout=0.0, targets=chosen.target_names)
    random = np.random.default_rng(0)
    start = {
        name: tensor.numpy() + 0.02 * random.standard_normal(tensor.shape).astype(np.float32)
        for name, tensor in initial_adapter(config, lora, seed=0).items()
    }
    run = RunRecord(
        run_id="run",
        model="chat",
        recipe=chosen.to_run_config(),
        base_version=1,
        base_hash="a" * 64,
        parent_version=1,
        status="completed",
        reason="",
        started_at=STARTED,
        finished_at=STARTED,
    )
    return RunAudit(
        run=run,
        recipe=chosen,
        plan=PLAN,
        tree=fleet / "tree",
        events=events,
        start=start,
        result=start,
        work=folder / "work",
    )


@pytest.fixture
def audit(folder) -> RunAudit:
    return audit_of(folder, events=[example_event(device, number) for number in (1, 2) for device in range(2)])


def verdicts(findings: tuple[Finding, ...]) -> dict[str, Verdict]:
    return {finding.part: finding.verdict for finding in findings}


@pytest.mark.slow
def test_dp_sgd_with_canaries_on_the_costliest_device(audit: RunAudit) -> None:
    found = verdicts(audit.example(silent))
    assert found.pop("one-run-example") is not Verdict.FAIL
    assert found == {"noise-example": Verdict.PASS, "clipping-example": Verdict.PASS}


@pytest.mark.slow
def test_both_ways_to_per_example_gradients_can_be_audited(folder) -> None:
    audit = audit_of(folder, events=[example_event(0, 1)], gradients="hooks")
    assert verdicts(audit.example(silent))["noise-example"] is Verdict.PASS


def test_words_are_read_out_of_updates_without_noise_alone(audit: RunAudit) -> None:
    (finding,) = audit.reconstruction(silent)
    assert finding.facts["control"] > 0.9
    assert finding.measured < 0.2
    assert finding.verdict is not Verdict.FAIL


def test_an_update_that_its_server_may_see_is_judged_by_what_leaves_the_server(folder) -> None:
    audit = audit_of(folder, events=[user_event(1)], privacy_mode="user", user_target_epsilon=8.0, max_participations=1)
    (finding,) = audit.reconstruction(silent)
    assert finding.measured < 0.2 < finding.facts["control"]


def test_the_sum_over_users_with_canary_devices(folder) -> None:
    events = [example_event(0, 1), user_event(1), user_event(2)]
    audit = audit_of(folder, events=events, privacy_mode="both", user_target_epsilon=8.0, max_participations=2)
    found = verdicts(audit.user(silent))
    assert found["noise-user"] is Verdict.PASS
    assert found["clipping-user"] is not Verdict.FAIL


def faulty_sums(monkeypatch, fault: dict) -> None:
    """The server's own sum with a fault in it, as a run would make it."""
    honest = user_level.noisy_average

    def faulty(updates, **rest):
        return honest(updates, **(rest | {name: change(rest[name]) for name, change in fault.items()}))

    monkeypatch.setattr(user_level, "noisy_average", faulty)


@pytest.mark.parametrize("options", [{}, {"clipping_quantile": 0.5, "clipping_bit_noise": 4.0}, {"noise_bands": 2}])
@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ({}, None),
        ({"noise_multiplier": lambda noise: noise / 64}, "noise-user"),
        ({"unit_noise": lambda noise: noise * 0}, "noise-user"),
        ({"clipping_norm": lambda norm: norm * 200, "noise_multiplier": lambda n: n / 200}, "clipping-user"),
    ],
)
def test_faults_in_the_sums_that_the_server_makes_are_found_and_stop_the_release(
    folder, monkeypatch, fault, part, options
) -> None:
    banded = {"mechanism": "banded_toeplitz_gaussian", "bands": 2} if "noise_bands" in options else {}
    # A device takes part in every second round, as min-separation says.
    events = [user_event(n).model_copy(update=banded | {"devices": (f"device{n % 2}",)}) for n in range(1, 9)]
    recipe = {"privacy_mode": "user", "user_target_epsilon": 50.0, "min_separation": 2, "cohort": 4} | options
    audit = audit_of(folder, events=events, max_participations=4, **recipe)
    faulty_sums(monkeypatch, fault)
    found = audit.user(silent)
    failed = {one.part for one in found if one.verdict is Verdict.FAIL}
    assert failed >= ({part} if part else set())
    assert part or not failed
    if part:
        with pytest.raises(GateRefusedError, match=part):
            require_audit(Known(found), "run", is_audit_required=False)


class Known:
    """A registry that knows what one audit found."""

    def __init__(self, findings) -> None:
        self._known = [FindingRecord(one, "user", None, STARTED) for one in findings]

    def audit_findings(self, _run_id):
        return tuple(self._known)


def test_an_audit_that_is_made_again_trains_anew(audit: RunAudit, tmp_path, monkeypatch) -> None:
    trained = []

    def run(replay_, **_rest):
        trained.append(replay_)
        return audit.start

    monkeypatch.setattr(replay.Replay, "run", run)
    for is_again, expected in ((False, 1), (False, 1), (True, 2)):
        opened = replace(audit, work=tmp_path, is_again=is_again, made=set())
        for _ in range(2):  # two parts need the same one
            opened._replayed(silent, has_dp=False)
        assert len(trained) == expected


IN_SHARES = {"cohort": 6, "quorum": 3, "secure_aggregation": True, "user_target_epsilon": 50.0}


def noise_in_replay(folder, monkeypatch, *, left_out: int) -> tuple[float, int]:
    """Variance of a replayed round's noise over what is promised, and of how many values; some shares left out."""
    event = event_in_shares(
        1, devices=6, rule=ShareRule(cohort=6, dropouts=0.0, colluding=0.0, length=100), noise=3.0, run_id="run"
    ).model_copy(update={"devices": ("device0", "device1", "device2", "x", "y", "z")})
    audit = audit_of(folder, events=[event], privacy_mode="user", max_participations=1, **IN_SHARES)
    honest = replay.noise_of_shares

    def fewer(count, *, devices, **others):
        return honest(count, devices=devices - left_out, **others)

    monkeypatch.setattr(replay, "noise_of_shares", fewer)
    again = replay.Replay(audit.recipe, audit.events, audit.people, audit.training, audit.start)
    adapter = again.run(has_dp=True, on_step=lambda _done, _total: None)
    moved = np.concatenate([np.ravel(adapter[name] - audit.start[name]) for name in adapter]).astype(np.float64)
    # In clipping norms. Three updates of one norm at most, over thousands of values, are nothing beside it.
    return float(np.var(moved * audit.recipe.cohort) / 3.0**2), moved.size


def test_a_run_whose_devices_made_the_noise_is_replayed_with_that_noise(folder, monkeypatch) -> None:
    found, values = noise_in_replay(folder, monkeypatch, left_out=0)
    low, high = stats.chi2.ppf((1e-4, 1 - 1e-4), values) / values
    assert low < found < high * 1.001
    # A planted fault: two of six devices add no share.
    assert noise_in_replay(folder, monkeypatch, left_out=2)[0] < low


def test_membership_and_exposure_share_the_run_without_dp(audit: RunAudit) -> None:
    steps: list[str] = []
    finding, detail = audit.membership(lambda what, _done, _total: steps.append(what))
    assert isinstance(detail, MembershipResult)
    assert detail.control is not None
    assert finding.sample_size == detail.members + detail.non_members
    assert any("without DP" in what for what in steps)
    again: list[str] = []
    (exposure,) = audit.exposure(lambda what, _done, _total: again.append(what))
    assert not any("without DP" in what for what in again)  # it lies on disk: a command that was stopped goes on
    assert exposure.sample_size == PLAN.secrets


@pytest.mark.parametrize("gradients", ["direct", "hooks"])
def test_the_control_is_dp_sgd_without_its_noise_and_clipping(folder, gradients: str) -> None:
    """It takes a shorter way to the sum of the gradients, and must arrive where DP-SGD would with nothing clipped."""
    audit = audit_of(folder, events=[example_event(0, 1)], gradients=gradients)
    training = audit.training
    examples = training.encode(audit.people.examples["device0"][:10])
    everyone = DPSGDParameters(
        noise_multiplier=0.0,
        clipping_norm=1e6,  # far above any gradient here, and below what stands for "no clipping"
        sampling_probability=1.0,
        steps=3,
        expected_batch_size=10.0,
        is_noisy=False,
    )
    private = training.update(audit.start, examples, everyone)
    plain = training.update(audit.start, examples, without_dp(everyone))
    moved = max(np.abs(update).max() for update in private.values())
    assert moved > 0
    for name, update in private.items():
        np.testing.assert_allclose(plain[name], update, atol=0.02 * moved, err_msg=name)


@pytest.mark.slow
def test_shadow_runs_give_likelihood_ratios_beside_the_calibrated_loss(audit: RunAudit) -> None:
    _, detail = replace(audit, plan=replace(PLAN, shadows=4, members=20)).membership(silent)
    assert isinstance(detail, MembershipResult)
    # Two people kept back four examples each: not enough others of their own, so strangers are among them.
    assert detail.likelihood is None
    own = replace(audit.people, strangers=())
    _, detail = replace_people(audit, own).membership(silent)
    assert detail.likelihood is not None
    assert 0 <= detail.likelihood.auc <= 1


@pytest.mark.slow
def test_the_control_meets_likelihood_ratios_as_well(audit: RunAudit, monkeypatch) -> None:
    given = []
    honest = run_audit.membership_audit

    def watched(*losses, **options):
        result = honest(*losses, **options)
        given.append((options["likelihood_scores"] is not None, result))
        return result

    monkeypatch.setattr(run_audit, "membership_audit", watched)
    replace_people(audit, replace(audit.people, strangers=())).membership(silent)
    (of_control, control), (of_release, release) = given
    assert of_control
    assert of_release
    assert release.control == strongest_of(control.calibrated, control.likelihood)


def replace_people(audit: RunAudit, people: People) -> RunAudit:
    changed = replace(audit, plan=replace(PLAN, shadows=4, members=20))
    changed.__dict__["people"] = people
    return changed


def test_a_run_of_a_real_fleet_leaves_out_what_needs_its_text(folder) -> None:
    audit = audit_of(folder, events=[example_event(0, 1)], has_fleet=False)
    assert audit.reason_to_skip("user") is not None
    assert "simulated" in str(audit.reason_to_skip("membership"))
    assert audit.reason_to_skip("example") is None
    assert verdicts(audit.example(silent))["noise-example"] is Verdict.PASS  # on the text of people who stand in


def test_no_adapter_on_the_first_layer_s_inputs_leaves_reconstruction_out(folder) -> None:
    audit = audit_of(folder, events=[example_event(0, 1)], targets="down_proj")
    assert "embeddings" in str(audit.reason_to_skip("reconstruction"))


def test_a_fleet_whose_devices_are_gone_is_said(folder) -> None:
    event = example_event(0, 1).model_copy(update={"device_id": "somebody-else"})
    with pytest.raises(AuditingError, match="simulated fleet"):
        audit_of(folder, events=[event]).example(silent)


def test_secrets_are_different_and_stand_in_some_devices_text() -> None:
    secrets = make_secrets(4, candidates=10, random=np.random.default_rng(0))
    for secret in secrets:
        assert len({secret.answer, *secret.others}) == 10
        assert secret.candidates[0] == secret.example
    stands = planted(secrets, ["a", "b"], repeats=3)
    assert {device: len(examples) for device, examples in stands.items()} == {"a": 6, "b": 6}
