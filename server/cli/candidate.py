"""A candidate made from a run's last round, and what is measured of it before it may be released."""

from __future__ import annotations

import tempfile
from importlib.metadata import version as distribution_version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from rich.markup import escape

from server.cli.console import Service, console, show_table
from server.errors import PublishingError
from server.federation.recipe import Recipe

if TYPE_CHECKING:
    from privacy.utility import GroupChange
    from server.publishing import Gate, GateResult
    from server.registry import RunRecord, VersionRecord


class _Measured(NamedTuple):
    """Losses of candidate and parent on the same examples, what those are called, what devices should compute."""

    candidate_loss: float
    parent_loss: float
    groups: tuple[GroupChange, ...]
    name: str
    logits: str

    def judged_by(self, gate: Gate) -> GateResult:
        return gate.judge(candidate_loss=self.candidate_loss, parent_loss=self.parent_loss, groups=self.groups)


def make_candidate(service: Service, run: RunRecord, *, gate: Gate, above: int) -> tuple[VersionRecord, GateResult]:
    """Round the last round's adapter as it will be shipped, judge exactly that, and add it to the registry."""
    from safetensors.numpy import load

    from model.probe import LOGITS_FACT
    from server.federation.adapter import ADAPTER, lora_of, master_bytes, master_of, parent_release, write_release
    from server.federation.bases import tree_of
    from server.publishing import create_candidate

    if run.parent_version is None:
        raise PublishingError(f"Run {run.run_id} has no parent version to be compared with.")
    recipe = Recipe.from_run_config(run.recipe)
    released = [r for r in service.registry.rounds(run.run_id) if r.status == "released"]
    if not released:
        raise PublishingError(f"Run {run.run_id} has no round with a result. See `lamella runs show {run.run_id}`.")
    service.settings.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=service.settings.work_dir, prefix="candidate-") as folder:
        adapter = Path(folder) / "adapter"
        trained = load(service.artifacts.read_bytes(released[-1].artifacts[ADAPTER]))
        parent = parent_release(
            tree_of(service.settings, service.registry, service.artifacts, model=run.model, version=run.parent_version),
            lora_of(recipe),
            artifacts=service.artifacts,
            master_sha256=service.registry.version(run.model, run.parent_version).master_sha256,
        )
        master = master_of(trained, parent)
        write_release(adapter, master, lora_of(recipe), form=recipe.adapter_format, parent=parent)
        with console.status("Evaluating the candidate and its parent on held-out text ..."):
            measured = _measure(service, run, recipe, adapter)
        result = measured.judged_by(gate)
        record = create_candidate(
            service.registry,
            service.artifacts,
            model=run.model,
            adapter=adapter,
            parent=run.parent_version,
            facts={
                "run": run.run_id,
                "rounds": len(released),
                **_privacy_facts(service, run.model, recipe),
                "held_out_loss": round(result.candidate_loss, 6),
                "parent_held_out_loss": round(result.parent_loss, 6),
                "evaluation": measured.name,
                LOGITS_FACT: measured.logits,
                "adapter_format": recipe.adapter_format,
                "lamella": distribution_version("lamella"),
            },
            run_id=run.run_id,
            master=master_bytes(master),
            above=above,
        )
    return record, result


def measured_again(service: Service, run: RunRecord, candidate: VersionRecord, *, gate: Gate) -> GateResult:
    """Judge a candidate that is in the registry, as `make_candidate` does before it gets there."""
    from server.publishing import materialise

    recipe = Recipe.from_run_config(run.recipe)
    with tempfile.TemporaryDirectory(dir=service.settings.work_dir, prefix="candidate-") as folder:
        tree = Path(folder) / "tree"
        materialise(service.registry, service.artifacts, model=run.model, version=candidate.number, folder=tree)
        with console.status("Evaluating the candidate and its parent on held-out text ..."):
            return _measure(service, run, recipe, tree / "adapter").judged_by(gate)


def show_groups(result: GateResult) -> None:
    """Print what the gate measured by group, or that nothing is known by group."""
    from server.subgroups import NO_LABELS

    if not result.groups:
        console.print(NO_LABELS, soft_wrap=True)
        return
    show_table(
        "Held-out loss by group (95% interval of the change)",
        ("group", "examples", "people", "before", "after", "change", "interval"),
        [
            (
                escape(group.name),
                group.examples,
                group.people,
                f"{group.before:.4f}",
                f"{group.after:.4f}",
                f"{group.change:+.4f}" + (" worse" if group.is_worse else ""),
                "too few to say" if group.low is None else f"{group.low:+.4f} to {group.high:+.4f}",
            )
            for group in result.groups
        ],
    )


def _measure(service: Service, run: RunRecord, recipe: Recipe, adapter: Path) -> _Measured:
    from server.evaluation import HeldOutEvaluation
    from server.federation.bases import tree_of
    from server.subgroups import compare_groups

    parent = service.registry.version(run.model, run.parent_version or run.base_version)
    tree = tree_of(service.settings, service.registry, service.artifacts, model=run.model, version=parent.number)
    evaluation = HeldOutEvaluation(
        tree, data=recipe.data, examples=recipe.evaluation_examples, max_length=recipe.max_length
    )
    after, facts = evaluation.losses_of_adapter(adapter), parent.manifest.facts
    known = facts.get("held_out_loss") if facts.get("evaluation") == evaluation.name else None
    groups: tuple[GroupChange, ...] = ()
    if isinstance(known, float) and not any(evaluation.groups):
        before = known  # measured when the parent was released, on the same text
    else:
        is_adapter = parent.manifest.kind == "adapter"
        losses = (
            evaluation.losses_of_adapter(tree / "adapter")
            if is_adapter
            else evaluation.losses_of_base(evaluation.examples)
        )
        before, groups = (
            fmean(losses),
            compare_groups(evaluation.groups, before=losses, after=after, people=evaluation.people),
        )
    return _Measured(
        candidate_loss=fmean(after),
        parent_loss=before,
        groups=groups,
        name=evaluation.name,
        logits=evaluation.expected_logits(adapter),
    )


def _privacy_facts(service: Service, model: str, recipe: Recipe) -> dict[str, str | float]:
    """What the ledger says of the units that the run protects. `epsilon` is per example where that is one of them."""
    from privacy.accountant import epsilon_by_device
    from privacy.promises import promised
    from privacy.user_level import epsilon_by_population

    events = service.registry.privacy_events(model=model)
    examples, users = promised(events, "example"), promised(events, "user")
    facts: dict[str, str | float] = {"privacy_unit": "example" if recipe.has_example_level else "user"}
    if recipe.has_user_level and users:
        spent = epsilon_by_population(users, target_delta=recipe.user_target_delta).get(model, 0.0)
        facts |= {"user_epsilon": round(spent, 4), "user_target_delta": recipe.user_target_delta}
        facts |= {"epsilon": round(spent, 4), "target_delta": recipe.user_target_delta}
    if recipe.has_example_level and examples:
        largest = max(epsilon_by_device(examples, target_delta=recipe.target_delta).values(), default=0.0)
        facts |= {"epsilon": round(largest, 4), "target_delta": recipe.target_delta}
    return facts
