"""What one federated run does: the keys of `[tool.flwr.app.config]`, parsed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from model.adapter_format import AdapterFormat  # noqa: TC001 - pydantic reads it at run time
from privacy.noise_shares import FEWEST_SHARES
from server.errors import RecipeError
from server.federation.rule import AggregationName, AggregationRule
from server.federation.secure_cohort import problem_with_cohort
from server.federation.secure_recipe import SecureSumRecipe
from server.federation.user_plan import share_rule_of
from server.federation.user_recipe import UserLevelRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping

ADAPTER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


_FEWEST_IN_A_SECURE_SUM = 3


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Recipe(UserLevelRecipe, SecureSumRecipe):
    """A federated run's settings; every field is a key of the Flower run config in kebab-case."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_kebab, populate_by_name=True)

    model: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Name of the model to fine-tune.")]
    run_name: Annotated[str, Field(max_length=64, description="Run id in the registry; empty: made from Flower's.")] = (
        ""
    )
    resume_run: Annotated[str, Field(max_length=64, description="Run id to go on with after its last round.")] = ""
    fleet: Annotated[str, Field(description="Simulation only: folder made by `lamella fleet make`.")] = ""
    data: Annotated[
        str, Field(description="Where held-out text comes from: `chitchat`, `docstrings` or `jsonl:FOLDER`.")
    ] = "chitchat"

    num_server_rounds: Annotated[int, Field(ge=1, le=10_000, description="Rounds in this run.")] = 3
    cohort: Annotated[int, Field(ge=1, le=100_000, description="Devices asked per round.")] = 2
    quorum: Annotated[
        int, Field(ge=1, description="Fewest accepted replies, else the round is void (not for `poisson`).")
    ] = 2
    deadline_s: Annotated[float, Field(gt=0, le=86_400, description="Seconds a round waits for its replies.")] = 600.0
    wait_for_devices_s: Annotated[
        float, Field(gt=0, le=86_400, description="Seconds to wait until `quorum` devices are connected.")
    ] = 120.0
    max_void_rounds: Annotated[int, Field(ge=0, description="Void rounds in a row before the run fails.")] = 2

    strategy: Annotated[Literal["fedavg", "fedadam"], Field(description="How the server moves the adapter.")] = "fedavg"
    server_learning_rate: Annotated[float, Field(gt=0, le=100, description="Step size on the averaged update.")] = 1.0
    max_update_norm: Annotated[float, Field(gt=0, description="L2 norm above which an update is refused.")] = 100.0

    aggregation: Annotated[
        AggregationName,
        Field(
            description="How updates become one: `mean`, or against hostile devices `median`, `trimmed-mean` or "
            "`multi-krum`."
        ),
    ] = "mean"
    trim_fraction: Annotated[
        float, Field(ge=0.01, lt=0.5, description="Of `trimmed-mean`: share of updates cut off at each end.")
    ] = 0.2
    assumed_hostile: Annotated[
        int, Field(ge=1, le=50_000, description="Of `multi-krum`: hostile devices in a round that it must outlive.")
    ] = 1

    rank: Annotated[int, Field(ge=1, le=512, description="LoRA rank.")] = 4
    alpha: Annotated[float, Field(gt=0, description="LoRA alpha.")] = 8.0
    targets: Annotated[str, Field(description="Comma-separated linear layers that get an adapter.")] = "q_proj,v_proj"
    adapter_format: Annotated[
        AdapterFormat,
        Field(
            description="In what a release holds the adapter: `float16`, `int8` or `int4`. What rounding leaves behind "
            "goes into the next release."
        ),
    ] = "int8"

    local_steps: Annotated[int, Field(ge=1, le=10_000, description="DP-SGD steps on a device per round.")] = 4
    batch_size: Annotated[int, Field(ge=1, le=4096, description="Expected examples per step (Poisson sampled).")] = 16
    learning_rate: Annotated[float, Field(gt=0, le=10, description="Step size on the device (SGD, momentum).")] = 0.02
    gradients: Annotated[
        Literal["direct", "hooks", "loop"],
        Field(
            description="Per-example gradients: `direct`, in the adapter's own backward pass (less time and memory; "
            "bfloat16 where the processor has it); `loop`, one example at a time (least memory); or `hooks`, by Opacus "
            "in float32. The same in what they are."
        ),
    ] = "direct"
    max_length: Annotated[int, Field(ge=8, le=4096, description="Tokens per example; longer ones are cut.")] = 64
    max_examples: Annotated[int, Field(ge=1, description="Examples a device uses at most.")] = 256
    example_counts: Annotated[
        Literal["withheld", "told"],
        Field(
            description="`withheld`: devices weigh alike and draw examples as if each had `max-examples`; how many it "
            "has stays on the device. `told`: devices weigh and draw by the number they have, which is then public."
        ),
    ] = "withheld"

    clipping_norm: Annotated[float, Field(gt=0, description="L2 bound of one example's gradient.")] = 1.0
    target_epsilon: Annotated[float, Field(gt=0, le=1000, description="Privacy budget of a device, example level.")] = (
        8.0
    )
    target_delta: Annotated[float, Field(gt=0, lt=1, description="Probability that the ε bound does not cover.")] = 1e-5
    budget_rounds: Annotated[
        int, Field(ge=0, description="Participations that the budget must last for; 0: `num-server-rounds`.")
    ] = 0

    evaluation_examples: Annotated[
        int, Field(ge=1, le=100_000, description="Held-out examples for the loss that gates a release.")
    ] = 64

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.quorum > self.cohort:
            raise ValueError(f"quorum {self.quorum} is larger than cohort {self.cohort}: no round could succeed")
        # Every count of replies that a round may end with.
        problems = map(self.aggregation_rule.problem_with, range(self.quorum, self.cohort + 1))
        problem = next(filter(None, problems), None)
        if problem is not None:
            raise ValueError(f"aggregation {self.aggregation}: {problem}. Raise `quorum`, or choose another rule")
        if self.has_user_level and self.aggregation != "mean":
            # One user can move a median, or what Krum chooses, by more than a clipping norm.
            raise ValueError(
                f"privacy-mode {self.privacy_mode} adds noise for a sum of clipped updates; "
                f"how far one user moves {self.aggregation} is another matter. Use aggregation mean"
            )
        if self.example_counts == "told" and (self.secure_aggregation or not self.has_example_level):
            raise ValueError(
                "example-counts told has no use where devices weigh alike and nothing is counted per example: leave it "
                "out under secure-aggregation and privacy-mode user"
            )
        problem = self._problem_of_secure_sum()
        if problem is not None:
            raise ValueError(f"secure-aggregation {problem}")
        unknown = set(self.target_names) - set(ADAPTER_TARGETS)
        if unknown or not self.target_names:
            raise ValueError(f"targets must name some of {', '.join(ADAPTER_TARGETS)}; got {self.targets!r}")
        return self

    def _problem_of_secure_sum(self) -> str | None:
        if not self.secure_aggregation:
            return None
        if self.aggregation != "mean":
            return f"shows the server no single update, and {self.aggregation} compares them. Use aggregation mean"
        if self.has_user_level and (problem := self._problem_of_shares()) is not None:
            return f"with privacy-mode {self.privacy_mode} {problem}"
        if self.quorum < _FEWEST_IN_A_SECURE_SUM:
            return f"needs a quorum of {_FEWEST_IN_A_SECURE_SUM}: a sum of fewer gives the others' updates away"
        return problem_with_cohort(self.cohort, dropouts=self.secure_dropouts, colluding=self.secure_colluding)

    def _problem_of_shares(self) -> str | None:
        """What does not go with noise that devices make in shares."""
        if self.cohort_sampling != "fixed":
            return (
                "takes cohort-sampling fixed: how many were drawn shows in the noise that they make, so that sampling "
                "hides nobody"
            )
        if self.noise_bands > 1:
            return "takes noise-bands 1: noise that is correlated over rounds comes from one key, on the server"
        if self.clipping_quantile > 0:
            return "takes clipping-quantile 0: the server sees no norm that the bound could follow"
        if share_rule_of(self, length=1).counted < FEWEST_SHARES:
            return (
                f"counts on fewer than {FEWEST_SHARES} of {self.cohort} shares of the noise: raise cohort, or lower "
                "secure-dropouts and secure-colluding"
            )
        return None

    @property
    def secure_norm(self) -> float:
        """L2 bound of an update under a secure sum."""
        return self.user_clipping_norm if self.has_user_level else self.secure_clipping_norm

    @property
    def aggregation_rule(self) -> AggregationRule:
        """How a round's updates become one."""
        return AggregationRule(
            name=self.aggregation, trim_fraction=self.trim_fraction, assumed_hostile=self.assumed_hostile
        )

    @property
    def target_names(self) -> tuple[str, ...]:
        """The adapter's target layers, in the model's order."""
        named = {name.strip() for name in self.targets.split(",") if name.strip()}
        return tuple(name for name in ADAPTER_TARGETS if name in named) + tuple(sorted(named - set(ADAPTER_TARGETS)))

    @property
    def participations(self) -> int:
        """Rounds of one device that its privacy budget must cover."""
        return self.budget_rounds or self.num_server_rounds

    def told_examples(self, num_examples: int) -> int:
        """How many examples a device that has so many says it has."""
        return num_examples if self.example_counts == "told" else self.max_examples

    @classmethod
    def from_run_config(cls, config: Mapping[str, object]) -> Self:
        """Parse a Flower run config.

        Raises:
            RecipeError: A key is unknown, missing or out of range; the message names it.
        """
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
            raise RecipeError(
                "The run config does not fit: " + "; ".join(lines) + ". See docs/federated.md for every key."
            ) from None

    def to_run_config(self) -> dict[str, str | int | float]:
        """The recipe as a Flower run config."""
        values: dict[str, str | int | float] = self.model_dump(by_alias=True)
        return values
