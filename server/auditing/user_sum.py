"""The server's own noisy sum over users, as a run makes it, for an audit to put canary devices through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from privacy.audits.user_canaries import NoisyAverage  # noqa: TC001 - what this makes
from privacy.banded_noise import BandedNoise
from privacy.budget import PrivacyBudget
from privacy.keyed_random import KEY_BYTES
from privacy.randomness import SystemRandom
from privacy.user_level import UserBills
from server.federation.user_level import UserLevel
from server.federation.user_plan import plan_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from privacy.event import PrivacyEvent
    from server.federation.recipe import Recipe


def server_sum(recipe: Recipe, events: Sequence[PrivacyEvent], *, canaries: int) -> NoisyAverage | None:
    """What `UserLevel` of a running run makes of a round's updates; None where devices make the noise in shares.

    Each call is the next round. The noise is the run's own kind and not the one that is handed in: an audit of numbers
    that it made itself would miss a fault in how the server makes them.
    """
    if events[0].shares is not None:
        return None
    bands = events[0].bands
    level = UserLevel(
        recipe=recipe,
        run_id=events[0].run_id,
        budget=PrivacyBudget(target_epsilon=recipe.user_target_epsilon, target_delta=recipe.user_target_delta),
        noise_multiplier=events[0].noise_multiplier,
        plan=plan_of(recipe, length=canaries),
        spent=UserBills(),
        known_events=0,
        banded=None if bands is None else BandedNoise(os.urandom(KEY_BYTES), bands=bands),
        clipping_norm=events[0].clipping_norm,
        random=SystemRandom(),
    )
    done = 0

    def average(
        updates: Iterable[Mapping[str, npt.NDArray[np.floating]]],
        *,
        shapes: Mapping[str, tuple[int, ...]],
        clipping_norm: float,
        noise_multiplier: float,
        expected_contributions: int,
        unit_noise: npt.NDArray[np.float64],  # noqa: ARG001 - the run makes its own
    ) -> Mapping[str, npt.NDArray[np.float64]]:
        nonlocal done
        done += 1
        level.clipping_norm, level.noise_multiplier = clipping_norm, noise_multiplier
        zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        sent = [{name: np.asarray(value, dtype=np.float32) for name, value in update.items()} for update in updates]
        found = level.average(sent, zeros, done)
        scale = recipe.cohort / expected_contributions
        return {name: np.asarray(tensor, dtype=np.float64) * scale for name, tensor in found.items()}

    return average
