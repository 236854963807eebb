"""Events of either unit, and what neither may be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from privacy import PrivacyEvent
from privacy.chain import FIRST_HEAD, event_line, parse_chain

USER: dict[str, Any] = {
    "run_id": "run-1",
    "server_round": 1,
    "privacy_unit": "user",
    "population": "chat",
    "devices": ("b", "a"),
    "cohort_rule": "fixed",
    "mechanism": "gaussian_capped",
    "noise_multiplier": 1.0,
    "sampling_probability": 1.0,
    "steps": 1,
    "clipping_norm": 1.0,
    "target_delta": 1e-6,
    "recorded_at": datetime(2026, 3, 1, 12, tzinfo=UTC),
}
POISSON = {"cohort_rule": "poisson", "mechanism": "poisson_subsampled_gaussian", "sampling_probability": 0.1}
BANDED = {"mechanism": "banded_toeplitz_gaussian", "bands": 4}
EXAMPLE = {
    "privacy_unit": "example",
    "device_id": "a",
    "mechanism": "poisson_subsampled_gaussian",
    "population": None,
    "devices": None,
    "cohort_rule": None,
}


def test_who_took_part_is_sorted_and_counted() -> None:
    event = PrivacyEvent.model_validate(USER)
    assert event.devices == ("a", "b")
    assert event.contributions == 2
    assert PrivacyEvent.model_validate(USER | {"devices": ()}).contributions == 0


@pytest.mark.parametrize("changes", [{}, POISSON, BANDED, EXAMPLE])
def test_every_kind_survives_the_ledger(changes: dict[str, Any]) -> None:
    event = PrivacyEvent.model_validate(USER | changes)
    events, _ = parse_chain(event_line(event, previous=FIRST_HEAD), "ledger")
    assert events == (event,)


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": ("a", "a")},
        {"device_id": "a"},
        {"population": None},
        {"devices": None},
        {"cohort_rule": None},
        {"cohort_rule": "poisson"},
        {"steps": 2},
        {"sampling_probability": 0.5},
        {"bands": 4},
        {"mechanism": "poisson_subsampled_gaussian"},
        {"mechanism": "banded_toeplitz_gaussian"},
        {"mechanism": "laplace"},
        BANDED | {"bands": 1},
        BANDED | {"cohort_rule": "poisson"},
        POISSON | {"bands": 4},
        EXAMPLE | {"device_id": None},
        EXAMPLE | {"devices": ("a",)},
        EXAMPLE | {"population": "chat"},
        EXAMPLE | {"bands": 4},
        EXAMPLE | {"mechanism": "gaussian_capped"},
        {"privacy_unit": "group"},
    ],
)
def test_what_is_half_of_one_unit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrivacyEvent.model_validate(USER | changes)
