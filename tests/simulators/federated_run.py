"""A federated run without Flower's processes: devices that answer at once, a real registry, a tiny adapter."""

import random
from datetime import UTC, datetime

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from simulators.in_process_grid import InProcessGrid, replied

from delta_updates import FileEntry, VersionManifest, base_hash, tree_hash
from privacy import Contribution, RoundInstructions
from privacy.randomness import SystemRandom
from server.artifacts import LocalArtifactStore
from server.config import Settings
from server.federation.recipe import Recipe
from server.federation.run import FederatedRun
from server.registry import Registry

FILES = (FileEntry(path="base/model.safetensors", length=3, sha256="a" * 64),)
SHAPE = (2, 2)


def honest(device_id, value=1.0, num_examples=10, **changes):
    """A device that adds `value` everywhere."""

    def behave(message):
        asked = RoundInstructions.from_config(dict(message.content.config_records["instructions"]))
        adapter = {k: v.numpy() for k, v in message.content.array_records["adapter"].items()}
        contribution = Contribution(
            device_id=device_id,
            run_id=asked.run_id,
            server_round=asked.server_round,
            base_hash=asked.base_hash,
            num_examples=asked.told_examples(num_examples),
            noise_multiplier=changes.get("noise_multiplier", 8.0),
            sampling_probability=asked.sampling_probability_for(asked.told_examples(num_examples)),
            steps=asked.steps,
            clipping_norm=asked.clipping_norm,
            target_delta=asked.target_delta,
        )
        update = {k: Array(np.full_like(v, value)) for k, v in adapter.items()}
        return replied(
            message,
            RecordDict({"contribution": ConfigRecord(contribution.to_config()), "update": ArrayRecord(update)}),
        )

    return behave


def run_maker(tmp_path):
    """A fixture's generator: gives a function that makes runs over devices, all in one registry."""
    settings = Settings(home=tmp_path / "home")
    registry = Registry.open(settings)
    manifest = VersionManifest(
        model="chat",
        version=1,
        kind="base",
        parent=None,
        base_hash=base_hash(FILES),
        tree_hash=tree_hash(FILES),
        files=FILES,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        facts={},
    )
    registry.add_candidate(manifest)
    artifacts = LocalArtifactStore(tmp_path / "artifacts")

    def make(nodes, *, run_id="run", model="chat", evaluate=lambda adapter: 2.0, noise=None, **recipe):
        values = {
            "num_server_rounds": 2,
            "cohort": 3,
            "quorum": 2,
            "local_steps": 1,
            "batch_size": 2,
            "target_epsilon": 50.0,
        }
        chosen = Recipe(model=model, **(values | recipe))
        if model not in registry.models():  # another name for the same base
            registry.add_candidate(manifest.model_copy(update={"model": model}))
        if run_id not in [r.run_id for r in registry.runs()]:
            registry.create_run(
                run_id,
                model=model,
                recipe=chosen.to_run_config(),
                base_version=1,
                base_hash=manifest.base_hash,
                parent_version=1,
            )
        grid = InProcessGrid(nodes)
        return FederatedRun(
            run_id=run_id,
            recipe=chosen,
            base_hash=manifest.base_hash,
            adapter={"layers.0.attention.q_proj.lora_b": np.zeros(SHAPE, np.float32)},
            grid=grid,
            registry=registry,
            artifacts=artifacts,
            evaluate=evaluate,
            rng=random.Random(0),
            now=grid.now,
            sleep=grid.sleep,
            noise=noise or SystemRandom(),
        )

    make.registry = registry
    yield make
    registry.close()
