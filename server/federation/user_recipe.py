"""The keys of a recipe that say what is promised to a whole user (a device), and who adds the noise for it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator


class UserLevelRecipe(BaseModel):
    """The part of `Recipe` about the user level; without effect where `privacy-mode` is `example`."""

    privacy_mode: Annotated[
        Literal["example", "user", "both"],
        Field(
            description="Who is protected: one `example` (noise on the device, also against the server), a "
            "whole `user` (a device's contribution; noise in the sum, by the server or, under `secure-aggregation`, by "
            "all devices in shares), or `both` at once."
        ),
    ] = "example"
    cohort_sampling: Annotated[
        Literal["fixed", "poisson"],
        Field(
            description="`fixed`: `cohort` devices are asked and no credit is taken for chance. `poisson`: each "
            "device is asked independently with `sampling-probability`, and `cohort` is the expected number; no round "
            "is void for too few replies, as their number must not show."
        ),
    ] = "fixed"
    sampling_probability: Annotated[
        float, Field(ge=0, le=1, description="Of `poisson`: chance of each device to be asked in a round.")
    ] = 0.0
    max_participations: Annotated[
        int,
        Field(ge=0, description="Contributions of one device used at most, over all runs; 0: `num-server-rounds`."),
    ] = 0
    min_separation: Annotated[
        int, Field(ge=1, le=10_000, description="Rounds from one contribution of a device to its next, at least.")
    ] = 1
    user_clipping_norm: Annotated[
        float,
        Field(gt=0, description="L2 bound of one device's contribution; where the server sees it, it clips it again."),
    ] = 1.0
    user_noise_multiplier: Annotated[
        float,
        Field(
            ge=0,
            le=1e5,
            description="Noise in the sum over that bound; 0: the least that `user-target-epsilon` allows.",
        ),
    ] = 0.0
    user_target_epsilon: Annotated[
        float, Field(gt=0, le=1000, description="Privacy budget of the model's users, over all runs and releases.")
    ] = 8.0
    user_target_delta: Annotated[
        float, Field(gt=0, lt=1, description="Its δ; far below one over the number of users.")
    ] = 1e-6
    noise_bands: Annotated[
        int,
        Field(
            ge=1, le=1024, description="1: fresh noise each round; more: correlated over so many rounds, less in all."
        ),
    ] = 1
    clipping_quantile: Annotated[
        float, Field(ge=0, lt=1, description="Let the user's bound follow this quantile of the norms; 0: it stays.")
    ] = 0.0
    clipping_step: Annotated[float, Field(gt=0, le=2, description="How fast it follows (geometric).")] = 0.2
    clipping_bit_noise: Annotated[
        float,
        Field(ge=0, le=1e6, description="Noise in the count of norms within it; 0: a twentieth of `cohort`."),
    ] = 0.0

    @property
    def has_example_level(self) -> bool:
        """Whether devices add noise for each example."""
        return self.privacy_mode != "user"

    @property
    def has_user_level(self) -> bool:
        """Whether there is noise in the sum for each user."""
        return self.privacy_mode != "example"

    @property
    def is_poisson(self) -> bool:
        """Whether it is chance who is asked in a round, and credit is taken for that."""
        return self.has_user_level and self.cohort_sampling == "poisson"

    @model_validator(mode="after")
    def _user_level_consistent(self) -> Self:
        problem = _problem(self) if self.has_user_level else None
        if problem is not None:
            raise ValueError(problem)
        return self


def _problem(recipe: UserLevelRecipe) -> str | None:
    is_poisson = recipe.cohort_sampling == "poisson"
    if is_poisson != (recipe.sampling_probability > 0):
        return "cohort-sampling poisson goes with a sampling-probability above 0, and fixed with none"
    if recipe.noise_bands > 1 and is_poisson:
        return "noise-bands above 1 are for cohort-sampling fixed: banded noise takes no credit for sampling"
    if recipe.noise_bands > recipe.min_separation:
        return (
            f"noise-bands {recipe.noise_bands} need min-separation {recipe.noise_bands} or more: "
            "else one device pays for two overlapping bands"
        )
    if recipe.noise_bands > 1 and recipe.clipping_quantile > 0:
        return "noise-bands above 1 need a bound that stays: leave clipping-quantile at 0"
    return None
