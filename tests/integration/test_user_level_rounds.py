"""Both guarantees at once, from real devices' training to the report that anyone recomputes."""

import json
import random
from datetime import UTC, datetime

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from simulators.in_process_grid import InProcessGrid
from simulators.models import write_base_version

from client_sdk.flower_round import answer, simulated_site
from delta_updates import VersionManifest, base_hash, scan_tree, tree_hash
from model import LoRAConfig, ModelConfig, initial_adapter
from privacy import JsonlLedger
from privacy.__main__ import main as privacy_main
from privacy.budget import PrivacyBudget
from privacy.report import RunFacts, build_report, write_report
from server.artifacts import LocalArtifactStore
from server.config import Settings
from server.federation.recipe import Recipe
from server.federation.run import FederatedRun
from server.registry import Registry

DEVICES = 4
RECIPE = {
    "num_server_rounds": 2,
    "cohort": 3,
    "quorum": 2,
    "rank": 2,
    "alpha": 4.0,
    "local_steps": 2,
    "batch_size": 4,
    "max_length": 32,
    "max_examples": 30,
    "privacy_mode": "both",
    "max_participations": 2,
    "user_target_epsilon": 6.0,
    "user_clipping_norm": 0.5,
}


@pytest.fixture
def fleet(tmp_path):
    """A simulated fleet of four people with text of their own."""
    folder = tmp_path / "fleet"
    write_base_version(folder / "tree")
    (folder / "data").mkdir()
    for n in range(DEVICES):
        lines = [{"prompt": f"question {i} of {n}", "completion": f"answer {i * n}"} for i in range(40)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "data" / f"user{n}.jsonl").write_text(text, encoding="utf-8")
    users = {"users": [f"user{n}" for n in range(DEVICES)], "data": "x"}
    (folder / "fleet.json").write_text(json.dumps(users), encoding="utf-8")
    return folder


@pytest.fixture
def registry(fleet, tmp_path):
    opened = Registry.open(Settings(home=tmp_path / "home"))
    files = scan_tree(fleet / "tree")
    opened.add_candidate(
        VersionManifest(
            model="chat",
            version=1,
            kind="base",
            parent=None,
            base_hash=base_hash(files),
            tree_hash=tree_hash(files),
            files=files,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            facts={},
        )
    )
    yield opened
    opened.close()


def device(fleet, number):
    context = Context(
        run_id=1,
        node_id=number,
        node_config={"partition-id": number},
        state=RecordDict(),
        run_config={"fleet": str(fleet)},
    )
    return lambda message: answer(message, context)


def federated_run(fleet, registry, tmp_path, **changes):
    recipe = Recipe(model="chat", **(RECIPE | changes))
    digest = base_hash(scan_tree(fleet / "tree"))
    registry.create_run(
        "run", model="chat", recipe=recipe.to_run_config(), base_version=1, base_hash=digest, parent_version=1
    )
    lora = LoRAConfig(rank=recipe.rank, alpha=recipe.alpha, dropout=0.0, targets=recipe.target_names)
    config = ModelConfig.from_json((fleet / "tree" / "base" / "config.json").read_bytes())
    grid = InProcessGrid({n: device(fleet, n) for n in range(DEVICES)})
    return FederatedRun(
        run_id="run",
        recipe=recipe,
        base_hash=digest,
        adapter={name: tensor.numpy() for name, tensor in initial_adapter(config, lora, seed=0).items()},
        grid=grid,
        registry=registry,
        artifacts=LocalArtifactStore(tmp_path / "artifacts"),
        evaluate=lambda adapter: 2.0,
        rng=random.Random(0),
        now=grid.now,
        sleep=grid.sleep,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy_mode": "user"},
        {
            "cohort_sampling": "poisson",
            "sampling_probability": 0.9,
            "clipping_quantile": 0.5,
            "clipping_bit_noise": 50.0,
        },
        {"noise_bands": 2, "min_separation": 2, "cohort": 2, "quorum": 1},
    ],
    ids=["both", "user", "poisson-adaptive", "banded"],
)
def test_a_run_is_charged_to_both_units_and_its_report_recomputes(fleet, registry, tmp_path, changes, capsys):
    run = federated_run(fleet, registry, tmp_path, **changes)
    before = {name: tensor.copy() for name, tensor in run.adapter.items()}
    after = run.execute()
    assert all(np.isfinite(tensor).all() for tensor in after.values())
    assert any((after[name] != before[name]).any() for name in after)
    events = registry.privacy_events(model="chat")
    users = [event for event in events if event.privacy_unit == "user"]
    assert len(users) == 2

    own = [simulated_site(fleet, n).ledger.events() for n in range(DEVICES)]
    if run.recipe.has_example_level:
        # Each device's ledger and the server's say the same of it.
        assert {e.event_id for e in events} - {e.event_id for e in users} <= {e.event_id for of in own for e in of}
    else:
        assert {e.noise_multiplier for of in own for e in of} == {0.0}

    report = build_report(
        title="Report",
        run=RunFacts(
            run_id="run",
            model="chat",
            release="v2",
            base_hash=run.base_hash,
            rounds_planned=2,
            rounds_completed=2,
            devices_enrolled=DEVICES,
        ),
        events=events,
        target_delta=run.recipe.target_delta,
        budget=PrivacyBudget(target_epsilon=8.0, target_delta=1e-5),
        user_budget=registry.user_budget("chat"),
        provenance={},
    )
    assert report.verdict == "within_budget"
    assert report.users is not None
    assert 0 < report.users.epsilon <= 6.0
    assert report.ledger_head == registry.verify_privacy_chain("chat")[-1]
    paths = write_report(report, tmp_path / "report")
    assert "guarantee per user" in paths.markdown.read_text(encoding="utf-8")
    assert privacy_main(["recompute", str(tmp_path / "report")]) == 0
    # A cut end is a sound chain: the head in the report tells.
    lines = paths.ledger.read_bytes().splitlines(keepends=True)
    paths.ledger.write_bytes(b"".join(lines[:-1]))
    assert len(JsonlLedger(paths.ledger).events()) == len(lines) - 1
    assert privacy_main(["recompute", str(tmp_path / "report")]) == 1
    assert "ends at another head" in capsys.readouterr().out
