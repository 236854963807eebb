"""A simulated fleet of a few people with made-up text, and federated runs over it with real training."""

import json
import random
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context, RecordDict
from simulators.in_process_grid import Behaviour, InProcessGrid
from simulators.models import write_base_version

from client_sdk.flower_round import answer
from delta_updates import VersionManifest, base_hash, scan_tree, tree_hash
from model import LoRAConfig, ModelConfig, initial_adapter
from server.artifacts import LocalArtifactStore
from server.config import Settings
from server.federation.recipe import Recipe
from server.federation.run import FederatedRun
from server.registry import Registry

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
}


def write_text_fleet(folder: Path, *, devices: int) -> Path:
    """A fleet's folder as `lamella fleet make` writes it."""
    write_base_version(folder / "tree")
    (folder / "data").mkdir()
    for n in range(devices):
        lines = [{"prompt": f"question {i} of {n}", "completion": f"answer {i * n}"} for i in range(40)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "data" / f"user{n}.jsonl").write_text(text, encoding="utf-8")
    users = {"users": [f"user{n}" for n in range(devices)], "data": "x"}
    (folder / "fleet.json").write_text(json.dumps(users), encoding="utf-8")
    return folder


def open_text_registry(fleet: Path, home: Path) -> Registry:
    """A registry that knows the fleet's base as v1 of `chat`."""
    opened = Registry.open(Settings(home=home))
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
    return opened


def device(fleet: Path, number: int) -> Behaviour:
    """A device of the fleet that really trains; Flower's context of it lives as long as this function."""
    context = Context(
        run_id=1,
        node_id=number,
        node_config={"partition-id": number},
        state=RecordDict(),
        run_config={"fleet": str(fleet)},
    )
    return lambda message: answer(message, context)


def text_run(
    nodes: dict[int, Behaviour], fleet: Path, registry: Registry, artifacts: Path, *, run_id: str = "run", **recipe
) -> FederatedRun:
    """A run over these nodes; `recipe` is put over RECIPE."""
    chosen = Recipe(model="chat", **(RECIPE | recipe))
    digest = base_hash(scan_tree(fleet / "tree"))
    registry.create_run(
        run_id, model="chat", recipe=chosen.to_run_config(), base_version=1, base_hash=digest, parent_version=1
    )
    lora = LoRAConfig(rank=chosen.rank, alpha=chosen.alpha, dropout=0.0, targets=chosen.target_names)
    config = ModelConfig.from_json((fleet / "tree" / "base" / "config.json").read_bytes())
    grid = InProcessGrid(nodes)
    return FederatedRun(
        run_id=run_id,
        recipe=chosen,
        base_hash=digest,
        adapter={name: tensor.numpy() for name, tensor in initial_adapter(config, lora, seed=0).items()},
        grid=grid,
        registry=registry,
        artifacts=LocalArtifactStore(artifacts),
        evaluate=lambda adapter: 2.0,
        rng=random.Random(0),
        now=grid.now,
        sleep=grid.sleep,
    )
