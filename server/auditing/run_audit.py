"""The audit of one run: its parts, each done once and written down before the next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, load_file, save_file

from privacy.accountant import epsilon
from privacy.audits import Finding, MembershipResult, membership_audit, membership_finding
from privacy.audits.canaries import canary_findings
from privacy.audits.exposure import exposure_finding
from privacy.audits.lira import lira_scores
from privacy.audits.user_canaries import user_canary_run
from privacy.user_level import UserBills, user_epsilon
from server.auditing.people import People, people_of
from server.auditing.reading import Reading, first_layer_factors
from server.auditing.replay import Replay
from server.auditing.secret_text import make_secrets, planted
from server.auditing.trainer import LocalTraining, parameters_of
from server.auditing.user_sum import server_sum
from server.errors import AuditingError
from server.evaluation import HeldOutEvaluation
from server.federation.adapter import ADAPTER, lora_of
from server.federation.bases import tree_of
from server.federation.execution import first_adapter
from server.federation.recipe import Recipe
from server.files import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from model import Example
    from privacy.event import PrivacyEvent
    from server.artifacts import ArtifactStore
    from server.auditing.plan import AuditPlan
    from server.config import Settings
    from server.federation.replies import AdapterState
    from server.registry import Registry, RunRecord

    OnStep = Callable[[str, int, int], None]

# Each example is in half of them; fewer say nothing about its spread.
_FEWEST_SHADOWS = 4


def open_audit(
    settings: Settings,
    registry: Registry,
    artifacts: ArtifactStore,
    run_id: str,
    plan: AuditPlan,
    *,
    is_again: bool = False,
) -> RunAudit:
    """Get ready to audit a run; `is_again`: without what an earlier audit of it left behind.

    Raises:
        NotFoundError: There is no such run.
        AuditingError: No round of it brought a result: there is nothing to audit.
    """
    run = registry.run(run_id)
    released = [r for r in registry.rounds(run_id) if r.status == "released"]
    if not released:
        raise AuditingError(f"No round of {run_id} brought a result, so there is nothing to audit.")
    recipe = Recipe.from_run_config(run.recipe)
    tree = tree_of(settings, registry, artifacts, model=run.model, version=run.base_version)
    start = first_adapter(settings, registry, artifacts, run=run, tree=tree, lora=lora_of(recipe))
    return RunAudit(
        run=run,
        recipe=recipe,
        plan=plan,
        tree=tree,
        events=registry.privacy_events(run_id=run_id),
        start=start,
        result=load(artifacts.read_bytes(released[-1].artifacts[ADAPTER])),
        work=settings.work_dir / "audits" / run_id,
        is_again=is_again,
    )


@dataclass(frozen=True)
class RunAudit:
    """What there is of a run, and the parts of its audit; `is_again` trusts nothing that an earlier one left behind."""

    run: RunRecord
    recipe: Recipe
    plan: AuditPlan
    tree: Path
    events: Sequence[PrivacyEvent]
    start: AdapterState
    result: AdapterState
    work: Path
    is_again: bool = False
    made: set[str] = field(default_factory=set)

    def reason_to_skip(self, part: str) -> str | None:
        """Why a part says nothing about this run; None: it does."""
        if part == "user" and not self.recipe.has_user_level:
            return "this run promises nothing to whole users"
        if part == "example" and not self.recipe.has_example_level:
            return "this run promises nothing per example: the server is trusted with updates"
        if part in {"membership", "exposure"} and not self.people.is_real:
            return "the text that devices trained on is theirs; this part runs on simulated fleets"
        if part == "reconstruction" and not first_layer_factors(self.start):
            return "no adapter reads the embeddings directly (targets without q_proj, k_proj and v_proj)"
        return None

    def user(self, on_step: OnStep) -> tuple[Finding, ...]:
        """The noisy sum over users, with canary devices."""
        events = [event for event in self.events if event.privacy_unit == "user"]
        bills = UserBills(events)
        most = max((bills.participations[name] for name in bills.users() if name is not None), default=1)
        on_step("canary devices", 0, 2)
        average = server_sum(self.recipe, events, canaries=self.plan.canaries)
        run = user_canary_run(
            events, canaries=self.plan.canaries, participations=most, random=self._random(1), average=average
        )
        on_step("canary devices, without noise", 1, 2)
        control = user_canary_run(
            events,
            canaries=self.plan.canaries,
            participations=most,
            random=self._random(2),
            average=server_sum(self.recipe, events, canaries=self.plan.canaries),
            is_faulty=True,
        )
        delta = self.recipe.user_target_delta
        claimed = user_epsilon(events, target_delta=delta)
        return canary_findings(run, control, unit="user", claimed_epsilon=claimed, target_delta=delta)

    def example(self, on_step: OnStep) -> tuple[Finding, ...]:
        """DP-SGD on the costliest device, with gradient canaries."""
        own, delta = self._costliest, self.recipe.target_delta
        examples = self.training.encode(self.people.examples[own[0].device_id or ""])
        told = self.recipe.told_examples(len(examples))
        promised = [parameters_of(event, told_examples=told) for event in own]
        found = [
            self.training.canaries(
                self.start,
                examples,
                promised,
                canaries=self.plan.canaries,
                random=self._random(3 + is_faulty),
                is_faulty=is_faulty,
                on_step=lambda done, total, text=text: on_step(text, done, total),  # type: ignore[misc]
            )
            for is_faulty, text in ((False, "canaries in DP-SGD"), (True, "canaries, without DP"))
        ]
        claimed = epsilon(own, target_delta=delta)
        return canary_findings(found[0], found[1], unit="example", claimed_epsilon=claimed, target_delta=delta)

    def reconstruction(self, on_step: OnStep) -> tuple[Finding, ...]:
        """Words of one short text of each of some devices, read out of its update."""
        reading = Reading(self.recipe, self.training, self.result, self.events)
        everything = [example for own in self.people.examples.values() for example in own]
        texts = reading.short_texts(everything, count=self.plan.attempts, random=self._random(5))
        return (reading.finding(texts, lambda done, total: on_step("reading words out of updates", done, total)),)

    def membership(self, on_step: OnStep) -> tuple[Finding, MembershipResult]:
        """Who was trained on, by the release; the control is the same run without DP."""
        control = self._control(on_step)
        members = self.people.in_turn(self._devices, limit=self.plan.members)
        others, who = self.people.others(members=len(members))
        on_step("losses of members and others", 0, 1)
        evaluation = HeldOutEvaluation(self.tree, data=self.recipe.data, examples=1, max_length=self.recipe.max_length)
        inside, outside = evaluation.encode(members), evaluation.encode(others)
        of_inside, of_outside = (
            evaluation.losses_beside_base(group, lora_of(self.recipe)) for group in (inside, outside)
        )

        def attacked(adapter: AdapterState, of_control: MembershipResult | None, *, has_dp: bool) -> MembershipResult:
            of_members, of_others = of_inside(adapter), of_outside(adapter)
            likelihoods = self._likelihoods(
                evaluation, (members, of_members.release), (others, of_others.release), on_step, has_dp=has_dp
            )
            return membership_audit(of_members, of_others, positive_control=of_control, likelihood_scores=likelihoods)

        # The control meets every attack that the release does: whichever is the stronger there must have found it.
        of_control = attacked(control, None, has_dp=False)
        result = attacked(self.result, of_control, has_dp=True)
        on_step("losses of members and others", 1, 1)
        control_was = f"the same run on the same text without noise and clipping; the others are {who}"
        return membership_finding(result, control=control_was), result

    def exposure(self, on_step: OnStep) -> tuple[Finding, ...]:
        """Secrets in the text of some devices: does the run, done again with them, remember any?"""
        adapters = (self._replayed(on_step, has_dp=True), self._control(on_step))
        losses = []
        for number, adapter in enumerate(adapters):
            on_step("losses of secrets", number, len(adapters))
            losses.append(self._losses_of_secrets(adapter))
        return (exposure_finding(losses[0], losses[1], repeats=self.plan.repeats),)

    @cached_property
    def people(self) -> People:
        """Whose text this audit works on."""
        return people_of(self.recipe, self._devices)

    @cached_property
    def training(self) -> LocalTraining:
        """The base, loaded for training."""
        return LocalTraining.open(self.recipe, self.tree)

    @cached_property
    def _devices(self) -> frozenset[str]:
        return frozenset(
            name for e in self.events for name in ([e.device_id] if e.device_id is not None else e.devices or ())
        )

    @cached_property
    def _costliest(self) -> list[PrivacyEvent]:
        """The events of the device that pays most, of those whose text is here."""
        delta = self.recipe.target_delta
        own: dict[str, list[PrivacyEvent]] = {}
        for event in self.events:
            if event.device_id is not None and event.device_id in self.people.examples:
                own.setdefault(event.device_id, []).append(event)
        if not own:
            raise AuditingError(f"None of the devices of {self.run.run_id} is in its simulated fleet any more.")
        return max(own.values(), key=lambda events: epsilon(events, target_delta=delta))

    @cached_property
    def _secrets(self) -> tuple[Any, ...]:
        return make_secrets(self.plan.secrets, candidates=self.plan.candidates, random=self._random(6))

    def _control(self, on_step: OnStep) -> AdapterState:
        return self._replayed(on_step, has_dp=False)

    def _likelihoods(
        self,
        evaluation: HeldOutEvaluation,
        members: tuple[Sequence[Example], Sequence[float]],
        others: tuple[Sequence[Example], Sequence[float]],
        on_step: OnStep,
        *,
        has_dp: bool,
    ) -> tuple[list[float], list[float]] | None:
        """Scores of members and others by shadow runs; None: none are wanted, or strangers are among the others."""
        examples = [*members[0], *others[0]]
        if self.plan.shadows < _FEWEST_SHADOWS or set(self.people.strangers) & set(others[0]):
            return None
        encoded, random = evaluation.encode(examples), self._random(7)
        # In pairs, the second with what the first left out: each example is in half of the shadows.
        halves = [half for _ in range(self.plan.shadows // 2) for half in self.people.halved(random)]
        losses, saw = [], []
        for number, half in enumerate(halves, start=1):
            text = f"shadow run {number} of {len(halves)}" + ("" if has_dp else ", without DP")
            adapter = self._replay(half).run(
                has_dp=has_dp,
                on_step=lambda done, total, text=text: on_step(text, done, total),  # type: ignore[misc]
            )
            losses.append(evaluation.losses(adapter, lora_of(self.recipe), encoded))
            seen = {example for own in half.values() for example in own}
            saw.append([example in seen for example in examples])
        scores = lira_scores(np.array([*members[1], *others[1]]), np.array(losses), np.array(saw)).tolist()
        return scores[: len(members[0])], scores[len(members[0]) :]

    def _replay(self, examples: dict[str, tuple[Example, ...]], **rest: Any) -> Replay:  # noqa: ANN401 - Replay's own
        people = replace(self.people, examples=examples)
        return Replay(
            recipe=self.recipe, events=self.events, people=people, training=self.training, start=self.start, **rest
        )

    def _replayed(self, on_step: OnStep, *, has_dp: bool) -> AdapterState:
        """The run again, with secrets; kept on disk, since two parts and a second try need it."""
        plan = f"{self.plan.secrets},{self.plan.repeats},{self.plan.candidates},{self.plan.seed}"
        name = f"{'with' if has_dp else 'without'}-dp-{hashlib.sha256(plan.encode()).hexdigest()[:12]}.safetensors"
        kept = self.work / name
        if kept.exists() and (name in self.made or not self.is_again):
            return load_file(kept)
        text = "the run again, with secrets" if has_dp else "the run again, with secrets, without DP"
        secrets = planted(self._secrets, sorted(self.people.examples), repeats=self.plan.repeats)
        replay = self._replay(self.people.examples, secrets=secrets)
        adapter = replay.run(has_dp=has_dp, on_step=lambda done, total: on_step(text, done, total))
        make_folder(self.work)
        unfinished = kept.with_suffix(".part")
        save_file(adapter, unfinished)
        unfinished.replace(kept)
        self.made.add(name)
        return adapter

    def _losses_of_secrets(self, adapter: AdapterState) -> np.ndarray[Any, np.dtype[np.float64]]:
        evaluation = HeldOutEvaluation(self.tree, data=self.recipe.data, examples=1, max_length=self.recipe.max_length)
        everything = [candidate for secret in self._secrets for candidate in secret.candidates]
        losses = evaluation.losses(adapter, lora_of(self.recipe), evaluation.encode(everything))
        if len(losses) != len(everything):
            raise AuditingError(f"max-length {self.recipe.max_length} is too short for a secret; nothing to measure.")
        return np.asarray(losses, dtype=np.float64).reshape(len(self._secrets), -1)

    def _random(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.plan.seed, stream])
