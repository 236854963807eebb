"""The privacy report of a run or a release, from what the registry and the artifact store know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from privacy.promises import promised
from privacy.report import AuditReport, RunFacts, TensorFact, UtilityFigure, build_report
from server.spending import example_budget_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.audits import MembershipResult
    from privacy.budget import PrivacyBudget
    from privacy.event import PrivacyEvent
    from server.artifacts import ArtifactStore
    from server.federation.recipe import Recipe
    from server.registry import Registry, RoundRecord, RunRecord, VersionRecord

_NOT_A_PARAMETER: Final = {"fleet", "run-name", "resume-run"}
_DELTA_WITHOUT_RUN: Final = 1e-5


def report_of_run(
    registry: Registry,
    artifacts: ArtifactStore,
    run: RunRecord,
    *,
    version: VersionRecord | None,
    membership: MembershipResult | None = None,
) -> AuditReport:
    """What a run spent, and what came of it.

    Args:
        registry: Where its events are; those of the whole model count, as what earlier runs spent is spent.
        artifacts: Where its adapters are.
        run: The run.
        version: What was released of it, or is about to be.
        membership: The attack as just measured; what the run's audit has found, unless given.

    Raises:
        RecipeError: The run's recipe does not parse.
        UnknownEventError: An event cannot be accounted for.
    """
    from server.federation.recipe import Recipe  # noqa: PLC0415 - Flower, which no base needs

    recipe, rounds = Recipe.from_run_config(run.recipe), registry.rounds(run.run_id)
    known = registry.audit_findings(run.run_id)
    measured = next((one.detail for one in known if one.detail is not None), None)
    return build_report(
        title=f"Privacy report: {run.model}, run {run.run_id}",
        run=_facts_of_run(registry, artifacts, run, recipe, rounds, version),
        events=registry.privacy_events(model=run.model),
        target_delta=recipe.target_delta,
        budget=example_budget_of(registry, run.model, recipe),
        user_budget=registry.user_budget(run.model),
        base=registry.ledgers_beside(run.model, base_hash=run.base_hash),
        membership=membership or measured,
        findings=[one.finding for one in known],
        earlier_findings=registry.earlier_findings(run.run_id),
        utility=_utility(version),
        provenance=_provenance(run, version),
    )


def report_of_version(registry: Registry, artifacts: ArtifactStore, version: VersionRecord) -> AuditReport:
    """What has been spent on a model when a version of it is released; of its run, where it comes from one.

    Raises:
        RecipeError, UnknownEventError: As for `report_of_run`.
    """
    if version.run_id is not None:
        return report_of_run(registry, artifacts, registry.run(version.run_id), version=version)
    events = registry.privacy_events(model=version.model)
    own = promised(events, "example")
    return build_report(
        title=f"Privacy report: {version.model} v{version.number}",
        run=RunFacts(
            run_id="none",
            model=version.model,
            release=f"v{version.number}",
            parent=None if version.manifest.parent is None else f"v{version.manifest.parent}",
            base_hash=version.manifest.base_hash,
            rounds_planned=0,
            rounds_completed=0,
            devices_enrolled=_enrolled(registry, version.model),
        ),
        events=events,
        target_delta=own[-1].target_delta if own else _DELTA_WITHOUT_RUN,
        budget=_budget_of(registry, own),
        user_budget=registry.user_budget(version.model),
        base=registry.ledgers_beside(version.model, base_hash=version.manifest.base_hash),
        utility=_utility(version),
        provenance={"release": f"{version.model} v{version.number}", "tree hash": version.manifest.tree_hash},
    )


def _budget_of(registry: Registry, events: Sequence[PrivacyEvent]) -> PrivacyBudget | None:
    """What the model's devices were promised; None where none was charged."""
    from server.federation.recipe import Recipe  # noqa: PLC0415 - see above

    if not events:
        return None
    run = registry.run(events[-1].run_id)
    return example_budget_of(registry, run.model, Recipe.from_run_config(run.recipe))


def _facts_of_run(
    registry: Registry,
    artifacts: ArtifactStore,
    run: RunRecord,
    recipe: Recipe,
    rounds: tuple[RoundRecord, ...],
    version: VersionRecord | None,
) -> RunFacts:
    return RunFacts(
        run_id=run.run_id,
        model=run.model,
        release=f"v{version.number}" if version else "(not released)",
        parent=f"v{run.parent_version}",
        base_hash=run.base_hash,
        rounds_planned=recipe.num_server_rounds,
        rounds_completed=sum(r.status == "released" for r in rounds),
        void_rounds=tuple(r.server_round for r in rounds if r.status == "void"),
        devices_enrolled=_fleet_size(registry, run, recipe),
        secure_sum=recipe.secure_aggregation,
        settings={key: value for key, value in recipe.to_run_config().items() if key not in _NOT_A_PARAMETER},
        update_tensors=_update_tensors(artifacts, rounds),
        incidents=tuple(f"round {r.server_round}: {why}" for r in rounds for why in r.failures.values()),
    )


def _fleet_size(registry: Registry, run: RunRecord, recipe: Recipe) -> int:
    """Devices that could have taken part: the simulated fleet, or who is enrolled for the model."""
    if recipe.fleet and Path(recipe.fleet).exists():
        from server.federation.fleet import users_of  # noqa: PLC0415 - only where there is a simulated fleet

        return len(users_of(Path(recipe.fleet)))
    return _enrolled(registry, run.model)


def _enrolled(registry: Registry, model: str) -> int:
    return sum(device.model == model for device in registry.devices())


def _update_tensors(artifacts: ArtifactStore, rounds: tuple[RoundRecord, ...]) -> tuple[TensorFact, ...]:
    """Names, shapes and bytes of what every device sent, read from the adapter that it has the shape of."""
    from safetensors.numpy import load  # noqa: PLC0415 - no base needs it

    from server.federation.adapter import ADAPTER  # noqa: PLC0415 - torch

    released = [r for r in rounds if r.status == "released" and ADAPTER in r.artifacts]
    if not released:
        return ()
    state = load(artifacts.read_bytes(released[-1].artifacts[ADAPTER]))
    return tuple(
        TensorFact(name=name, shape=tensor.shape, dtype=str(tensor.dtype), num_bytes=tensor.nbytes)
        for name, tensor in sorted(state.items())
    )


def _utility(version: VersionRecord | None) -> tuple[UtilityFigure, ...]:
    if version is None or version.gate is None:
        return ()
    return (
        UtilityFigure(
            name="held-out loss, nats (lower is better)",
            before=version.gate.parent_loss,
            after=version.gate.candidate_loss,
            measured_on=str(version.manifest.facts.get("evaluation", "")),
            groups=version.gate.groups,
        ),
    )


def _provenance(run: RunRecord, version: VersionRecord | None) -> dict[str, str]:
    facts = {"run": run.run_id, "base hash": run.base_hash, "started": run.started_at.isoformat(timespec="seconds")}
    if version is not None:
        facts |= {"release": f"{version.model} v{version.number}", "tree hash": version.manifest.tree_hash}
        if form := version.manifest.facts.get("adapter_format"):
            facts["adapter format"] = str(form)
    return facts
