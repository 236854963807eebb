"""One Flower run: opens the registry, finds the base, runs the loop, writes down how it ended."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from model import LoRAConfig, ModelConfig, initial_adapter
from server.artifacts import ArtifactStore, open_artifacts
from server.config import Settings, load_settings
from server.errors import RecipeError
from server.evaluation import HeldOutEvaluation
from server.federation.adapter import lora_of, released_floats
from server.federation.bases import base_of, newest_release, tree_of
from server.federation.recipe import Recipe
from server.federation.run import FederatedRun
from server.registry import Registry, RunRecord

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Context
    from flwr.serverapp import Grid

    from server.federation.replies import AdapterState

log = logging.getLogger("lamella.federation")


def execute_run(grid: Grid, context: Context) -> None:
    """Run the recipe in Flower's run config; any error ends the Flower run as failed."""
    recipe = Recipe.from_run_config(context.run_config)
    settings = load_settings()
    registry = Registry.open(settings)
    artifacts = open_artifacts(settings)
    run = _open_run(recipe, registry, flower_run_id=context.run_id)
    try:
        tree = tree_of(settings, registry, artifacts, model=run.model, version=run.base_version)
        lora = lora_of(recipe)
        evaluation = HeldOutEvaluation(
            tree, data=recipe.data, examples=recipe.evaluation_examples, max_length=recipe.max_length
        )

        def judge(adapter: AdapterState) -> float:
            try:
                return evaluation.loss(adapter, lora)
            finally:
                evaluation.unload()  # devices train next; simulated ones need this machine's memory

        federated = FederatedRun(
            run_id=run.run_id,
            recipe=recipe,
            base_hash=run.base_hash,
            adapter=first_adapter(settings, registry, artifacts, run=run, tree=tree, lora=lora),
            grid=grid,
            registry=registry,
            artifacts=artifacts,
            evaluate=judge,
        )
        federated.resume()
        federated.execute()
    except BaseException as error:
        registry.finish_run(run.run_id, status="failed", reason=f"{type(error).__name__}: {error}"[:500])
        raise
    registry.finish_run(run.run_id, status="completed")
    registry.forget_noise_key(run.run_id)  # nobody can subtract the noise any more; a run that failed may go on


def _open_run(recipe: Recipe, registry: Registry, *, flower_run_id: int) -> RunRecord:
    """The run to go on with, or a new one that starts from the newest release of the model."""
    if recipe.resume_run:
        run = registry.run(recipe.resume_run)
        fixed = ["model", "rank", "alpha", "targets", "clipping_norm", "local_steps", "batch_size", "strategy"]
        fixed += ["privacy_mode", "cohort_sampling", "user_clipping_norm", "noise_bands"]
        fixed += ["secure_aggregation", "secure_dropouts", "secure_colluding"]
        then = Recipe.from_run_config(run.recipe)
        changed = [key for key in fixed if getattr(then, key) != getattr(recipe, key)]
        if changed:
            raise RecipeError(f"{recipe.resume_run} was started with another {', '.join(changed)}; it cannot go on.")
        return run
    latest = newest_release(registry, recipe.model)
    return registry.create_run(
        recipe.run_name or f"flower-{flower_run_id}",
        model=recipe.model,
        recipe=recipe.to_run_config(),
        base_version=base_of(registry, latest).number,
        base_hash=latest.manifest.base_hash,
        parent_version=latest.number,
    )


def first_adapter(
    settings: Settings,
    registry: Registry,
    artifacts: ArtifactStore,
    *,
    run: RunRecord,
    tree: Path,
    lora: LoRAConfig,
) -> AdapterState:
    """The parent's adapter when it has the same shape, else a fresh one (B = 0: it changes nothing yet)."""
    if run.parent_version is not None and registry.version(run.model, run.parent_version).manifest.kind == "adapter":
        parent = tree_of(settings, registry, artifacts, model=run.model, version=run.parent_version)
        released = released_floats(parent, lora)
        if released is not None:
            return released
        log.warning("the parent v%d has another adapter shape: starting from a fresh adapter", run.parent_version)
    config = ModelConfig.from_json((tree / "base" / "config.json").read_bytes())
    fresh = initial_adapter(config, lora, seed=int(run.base_hash[:8], 16))
    return {name: tensor.to(torch.float32).numpy() for name, tensor in fresh.items()}
