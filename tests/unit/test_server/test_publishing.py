import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from simulators.power_cut import Fuse, FusedRegistry, FusedStore, PowerCutError
from simulators.server_home import MODEL, Home, offline_keys, open_home, write_adapter
from simulators.tuf_client import folder_getter, updater_for

from delta_updates import apply_package, scan_tree, tree_hash
from privacy.audits import Finding, Verdict
from privacy.report.pages import to_markdown
from server.errors import ArtifactDamagedError, ConflictError, GateRefusedError, PublishingError
from server.privacy_report import report_of_run
from server.publishing import Gate, GateResult, PublishResult, create_candidate, evaluate, publish
from server.registry import Registry
from server.signing import Lifetimes, SignedMetadata


def put_in_field(home: Home, installed: int) -> None:
    """Enrol a device that reports a version."""
    token, _ = home.registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, _ = home.registry.enrol(token, name="device")
    home.registry.record_check(device.device_id, installed_version=installed, installed_hash=None)


def prepare(folder: Path) -> Home:
    """v1 and v2 released, v1 still on a device, v3 a candidate."""
    home = open_home(folder)
    home.base()
    home.publish(1, loss=None)
    home.candidate(1, parent=1)
    home.publish(2)
    put_in_field(home, 1)
    home.candidate(2, parent=2)
    return home


def require_offered_versions_are_whole(home: Home, folder: Path) -> None:
    """All that is released is signed, stored, and rebuilds its version, as a device sees it."""
    folder.mkdir(parents=True, exist_ok=True)
    root = SignedMetadata.open(home.settings).root_bytes()
    updater = updater_for(folder_getter(home.settings.home / "metadata"), folder / "device", root=root)
    for version in home.registry.versions(MODEL):
        if version.state != "released":
            continue
        for package in home.registry.packages(MODEL, version.number):
            info = updater.get_targetinfo(package.path)
            assert info is not None, package.path
            with home.artifacts.path(package.sha256, length=package.length).open("rb") as file:
                info.verify_length_and_hashes(file)
        assert updater.get_targetinfo(version.manifest_path) is not None
        full = home.registry.packages(MODEL, version.number)[0]
        target = folder / f"v{version.number}"
        apply_package(
            None,
            home.artifacts.path(full.sha256),
            target,
            expected_target_hash=version.manifest.tree_hash,
        )
        assert tree_hash(scan_tree(target)) == version.manifest.tree_hash


def test_publishing_builds_a_package_from_every_version_in_the_field(tmp_path: Path) -> None:
    home = prepare(tmp_path)
    assert home.publish(3).state == "released"
    packages = home.registry.packages(MODEL, 3)
    assert [package.source_version for package in packages] == [None, 1, 2]
    assert [package.path for package in packages] == [
        f"packages/{MODEL}/3/{name}.lmpkg" for name in ("full", "from-1", "from-2")
    ]
    assert packages[2].length < packages[1].length < packages[0].length
    require_offered_versions_are_whole(home, tmp_path)
    assert [path.name for path in home.settings.work_dir.iterdir()] == [".lock"]
    home.registry.close()


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    home = prepare(tmp_path)
    first = home.publish(3)
    signed = {path.name for path in (home.settings.home / "metadata").iterdir()}
    assert home.publish(3, loss=None) == first
    assert {path.name for path in (home.settings.home / "metadata").iterdir()} == signed
    home.registry.close()


def test_every_step_is_told(tmp_path: Path) -> None:
    home = prepare(tmp_path)
    steps: list[tuple[str, int, int]] = []
    result = publish(
        home.registry,
        home.artifacts,
        home.metadata,
        model=MODEL,
        version=3,
        gate=GateResult(candidate_loss=1.0, parent_loss=1.0, margin=0.0),
        work=home.settings.work_dir,
        on_step=lambda text, done, total: steps.append((text, done, total)),
    )
    assert isinstance(result, PublishResult)
    assert steps == [
        ("build and check the full package", 0, 5),
        ("build and check the delta from v1", 1, 5),
        ("build and check the delta from v2", 2, 5),
        ("sign", 3, 5),
        ("release", 4, 5),
        ("released", 5, 5),
    ]
    home.registry.close()


def test_a_delta_that_saves_too_little_is_left_out(home: Home) -> None:
    home.base()
    home.publish(1, loss=None)
    home.base(seed=1)
    home.publish(2, loss=None)
    assert [package.source_version for package in home.registry.packages(MODEL, 2)] == [None]


def test_the_gate_compares_with_the_parent_within_a_margin() -> None:
    gate = Gate(margin=0.1)
    assert gate.judge(candidate_loss=2.0, parent_loss=2.0).is_passed
    assert gate.judge(candidate_loss=2.05, parent_loss=2.0).is_passed
    refused = gate.judge(candidate_loss=2.2, parent_loss=2.0)
    assert not refused.is_passed
    assert refused.reason == "evaluation gate refused: held-out loss 2.2000, parent 2.0000, margin 0.1000"
    for broken in (float("nan"), float("inf"), float("-inf")):
        assert not gate.judge(candidate_loss=broken, parent_loss=2.0).is_passed
    assert not gate.judge(candidate_loss=2.0, parent_loss=float("nan")).is_passed


@pytest.mark.parametrize("loss", [2.2, float("nan")])
def test_a_failing_gate_rejects_the_candidate_for_good(tmp_path: Path, loss: float) -> None:
    home = prepare(tmp_path)
    with pytest.raises(GateRefusedError, match="is rejected"):
        home.publish(3, loss=loss)
    version = home.registry.version(MODEL, 3)
    assert (version.state, version.reason) == (
        "rejected",
        Gate(margin=0.1).judge(candidate_loss=loss, parent_loss=2.0).reason,
    )
    with pytest.raises(ConflictError, match="rejected"):
        home.publish(3)
    assert home.registry.packages(MODEL, 3) == ()
    home.registry.close()


def test_an_adapter_is_not_published_unmeasured(home: Home) -> None:
    home.base()
    home.publish(1, loss=None)
    home.candidate(1, parent=1)
    with pytest.raises(PublishingError, match="measure it"):
        home.publish(2, loss=None)


def test_evaluation_shows_both_trees(home: Home) -> None:
    home.base()
    home.candidate(1, parent=1)
    seen = []

    def loss_of(tree: Path) -> float:
        seen.append((tree / "adapter").exists())
        return 2.0 if seen[-1] else 2.5

    measured = evaluate(
        home.registry,
        home.artifacts,
        model=MODEL,
        version=2,
        gate=Gate(margin=0.1),
        loss_of=loss_of,
        work=home.settings.work_dir,
    )
    assert measured == GateResult(candidate_loss=2.0, parent_loss=2.5, margin=0.1)
    assert seen == [True, False]
    with pytest.raises(PublishingError, match="no parent"):
        evaluate(
            home.registry,
            home.artifacts,
            model=MODEL,
            version=1,
            gate=Gate(margin=0.1),
            loss_of=loss_of,
            work=home.settings.work_dir,
        )


def test_an_older_candidate_is_refused_before_any_work(home: Home) -> None:
    home.base()
    home.publish(1, loss=None)
    home.candidate(1, parent=1)
    home.candidate(2, parent=1)
    home.publish(3)
    with pytest.raises(ConflictError, match="versions never go down"):
        home.publish(2)


@pytest.mark.parametrize("number", [2, 3])
def test_a_damaged_store_is_found_before_anything_is_signed(tmp_path: Path, number: int) -> None:
    home = prepare(tmp_path)
    weights = home.registry.version(MODEL, number).manifest.files[1]
    assert weights.path == "adapter/adapter_model.safetensors"
    path = home.artifacts.path(weights.sha256)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(ArtifactDamagedError, match=f"no longer holds v{number}"):
        home.publish(3)
    assert home.registry.version(MODEL, 3).state == "candidate"
    assert home.registry.packages(MODEL, 3) == ()
    home.registry.close()


def publish_with_fuse(home: Home, fuse: Fuse) -> None:
    registry = FusedRegistry.open(home.settings)
    registry.fuse = fuse
    metadata = SignedMetadata(
        home.settings.home,
        lifetimes=Lifetimes.of(home.settings),
        release_keys=offline_keys(home.folder),
        write=fuse.write,
    )
    try:
        publish(
            registry,
            FusedStore(home.settings.artifacts_dir, fuse),
            metadata,
            model=MODEL,
            version=3,
            gate=Gate(margin=0.1).judge(candidate_loss=2.0, parent_loss=2.0),
            work=home.settings.work_dir,
            on_step=lambda text, *_: fuse.burn(text),
        )
    finally:
        registry.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home in which v3 is ready to be published; copied for each attempt."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder).registry.close()
    return folder


def copy_of(prepared: Path, folder: Path) -> Home:
    shutil.copytree(prepared, folder)
    home = open_home(folder)
    home.registry.close()
    return home


def count_operations(home: Home) -> list[str]:
    fuse = Fuse()
    publish_with_fuse(home, fuse)
    return fuse.operations


def finish_and_check(home: Home, folder: Path) -> None:
    """After a crash: nothing half-released; publishing again finishes; nothing is left lying about."""
    home.registry = Registry.open(home.settings)
    state = home.registry.version(MODEL, 3).state
    assert state in {"candidate", "released"}
    require_offered_versions_are_whole(home, folder / "before")
    home.publish(3, loss=None if state == "released" else 2.0)
    require_offered_versions_are_whole(home, folder / "after")
    assert [package.source_version for package in home.registry.packages(MODEL, 3)] == [None, 1, 2]
    assert [path.name for path in home.settings.work_dir.iterdir()] == [".lock"]
    home.registry.close()


@pytest.mark.slow
def test_a_cut_at_any_step_leaves_nothing_half_released(prepared: Path, tmp_path: Path) -> None:
    operations = count_operations(copy_of(prepared, tmp_path / "clean"))
    assert len(operations) == 22, operations
    for cut_at in range(1, len(operations) + 1):
        home, fuse = copy_of(prepared, tmp_path / f"cut-{cut_at}"), Fuse(cut_at)
        with pytest.raises(PowerCutError):
            publish_with_fuse(home, fuse)
        assert fuse.operations == operations[:cut_at]
        finish_and_check(home, tmp_path / f"check-{cut_at}")


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_half_released(prepared: Path, tmp_path: Path) -> None:
    operations = count_operations(copy_of(prepared, tmp_path / "clean"))
    for cut_at in range(1, len(operations) + 1):
        home = copy_of(prepared, tmp_path / f"cut-{cut_at}")
        child = os.fork()
        if child == 0:
            # No handler, no `finally`, no flush: what kill -9 leaves.
            publish_with_fuse(home, Fuse(cut_at, blow=lambda: os.kill(os.getpid(), signal.SIGKILL)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        finish_and_check(home, tmp_path / f"check-{cut_at}")


@pytest.mark.slow
def test_two_publishers_of_one_version_agree(prepared: Path, tmp_path: Path) -> None:
    home = copy_of(prepared, tmp_path / "home")
    home.registry = Registry.open(home.settings)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: home.publish(3), range(2))
    assert first == second
    require_offered_versions_are_whole(home, tmp_path / "check")
    home.registry.close()


def finding(verdict: Verdict, part: str = "noise-example") -> Finding:
    return Finding(
        part=part,
        question="Is there as much noise as the ledger says?",
        verdict=verdict,
        reason="the noise was 0.016 times what was promised",
        measured=0.016,
        unit="times",
        interval=(0.015, 0.017),
        sample_size=100,
        sample="100 values",
        control="none",
        is_control_caught=None,
        power="all",
        reading="1 is promised",
    )


def audited_candidate(home: Home) -> int:
    """A candidate of a run that is in the registry."""
    home.base()
    home.publish(1, loss=None)
    base = home.registry.version(MODEL, 1)
    home.registry.create_run(
        "run", model=MODEL, recipe={"model": MODEL}, base_version=1, base_hash=base.manifest.base_hash, parent_version=1
    )
    adapter = home.folder / "audited"
    write_adapter(adapter, seed=7)
    return create_candidate(
        home.registry, home.artifacts, model=MODEL, adapter=adapter, parent=1, facts={}, run_id="run"
    ).number


def publish_audited(home: Home, number: int, *, is_audit_required: bool = False) -> PublishResult:
    return publish(
        home.registry,
        home.artifacts,
        home.metadata,
        model=MODEL,
        version=number,
        gate=Gate(margin=0.1).judge(candidate_loss=1.0, parent_loss=2.0),
        work=home.settings.work_dir,
        is_audit_required=is_audit_required,
    )


def test_a_run_whose_audit_failed_is_never_released(tmp_path):
    home = open_home(tmp_path)
    number = audited_candidate(home)
    home.registry.record_findings("run", "example", [finding(Verdict.FAIL)])
    with pytest.raises(GateRefusedError, match=r"audit failed \(noise-example: the noise was 0\.016"):
        publish_audited(home, number)
    assert home.registry.version(MODEL, number).state == "candidate"
    # Measured again, after the fault was mended: the new finding takes the old one's place.
    home.registry.record_findings("run", "example", [finding(Verdict.PASS)])
    assert publish_audited(home, number).version.state == "released"
    # What was found before is not forgotten: the report of the run tells it.
    (before,) = home.registry.earlier_findings("run")
    assert (before.part, before.verdict) == ("noise-example", Verdict.FAIL)
    text = to_markdown(report_of_run(home.registry, home.artifacts, home.registry.run("run"), version=None))
    assert "repeated until it passes" in text
    assert "0.016 times" in text.split("Measured before")[1]


def test_a_service_may_want_every_run_audited_before_its_release(tmp_path):
    home = open_home(tmp_path)
    number = audited_candidate(home)
    with pytest.raises(GateRefusedError, match=r"noise-example \(not measured\), clipping-example \(not measured\)"):
        publish_audited(home, number, is_audit_required=True)
    undecided = [finding(Verdict.PASS), finding(Verdict.INCONCLUSIVE, "clipping-example")]
    home.registry.record_findings("run", "example", undecided)
    with pytest.raises(GateRefusedError, match=r"these have not: clipping-example \(inconclusive\)"):
        publish_audited(home, number, is_audit_required=True)
    passed = [finding(Verdict.PASS, part) for part in ("noise-example", "clipping-example")]
    home.registry.record_findings("run", "example", passed)
    # What else could not decide does not stand in the way.
    home.registry.record_findings("run", "membership", [finding(Verdict.INCONCLUSIVE, "membership")])
    assert publish_audited(home, number, is_audit_required=True).version.state == "released"
    known = home.registry.audit_findings("run")[-1]
    assert (known.asked_for, known.finding.verdict, known.detail) == ("membership", Verdict.INCONCLUSIVE, None)
