"""From events to the figures of devices and rounds, in bounded time however long the run was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.accountant import epsilon, epsilon_by_device
from privacy.report.schema import DeviceCost, DeviceSeries, RoundCost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.event import PrivacyEvent

_DRAWN_DEVICES = 40
_MAX_EVALUATIONS = 400


def events_of(events: Sequence[PrivacyEvent], device: str | None) -> tuple[PrivacyEvent, ...]:
    """The events of one device."""
    return tuple(event for event in events if event.device_id == device)


def device_cost(device: str, spent: float, events: Sequence[PrivacyEvent]) -> DeviceCost:
    """One device's bill, given its ε."""
    own = events_of(events, device)
    return DeviceCost(
        device_id=device,
        epsilon=spent,
        participations=len(own),
        steps=sum(event.steps for event in own),
        smallest_noise_multiplier=min(event.noise_multiplier for event in own),
        largest_sampling_probability=max(event.sampling_probability for event in own),
        largest_clipping_norm=max(event.clipping_norm for event in own),
    )


RoundKey = tuple[str, int]


def rounds_of(events: Sequence[PrivacyEvent]) -> list[RoundKey]:
    """Every round, runs in the order of their first event, rounds by number within their run."""
    first_seen: dict[str, int] = {}
    for position, event in enumerate(events):
        first_seen.setdefault(event.run_id, position)
    keys = {(event.run_id, event.server_round) for event in events}
    return sorted(keys, key=lambda key: (first_seen[key[0]], key[1]))


def round_costs(
    events: Sequence[PrivacyEvent], rounds: Sequence[RoundKey], target_delta: float
) -> tuple[RoundCost, ...]:
    """Every round's bill, in the order of `rounds`."""
    by_round: dict[RoundKey, list[PrivacyEvent]] = {key: [] for key in rounds}
    for event in events:
        by_round[event.run_id, event.server_round].append(event)
    evaluated = _evaluated(len(rounds), len({event.device_id for event in events}))
    so_far: list[PrivacyEvent] = []
    costs: list[RoundCost] = []
    for position, key in enumerate(rounds):
        so_far += by_round[key]
        alone = epsilon_by_device(by_round[key], target_delta=target_delta)
        total = epsilon_by_device(so_far, target_delta=target_delta) if position in evaluated else {}
        costs.append(
            RoundCost(
                run_id=key[0],
                server_round=key[1],
                participants=len(alone),
                epsilon_alone=max(alone.values()),
                epsilon_so_far=max(total.values()) if total else None,
            )
        )
    return tuple(costs)


def _evaluated(rounds: int, devices: int) -> set[int]:
    """Positions of the rounds whose totals are computed: all of a short run, evenly spread ones of a long run."""
    wanted = min(rounds, max(2, _MAX_EVALUATIONS // max(devices, 1)))
    if wanted <= 1:
        return set(range(rounds))
    return {round(index * (rounds - 1) / (wanted - 1)) for index in range(wanted)}


def device_series(
    events: Sequence[PrivacyEvent], rounds: Sequence[RoundKey], by_device: Mapping[str, float], target_delta: float
) -> tuple[DeviceSeries, ...]:
    """The costliest devices' totals over the rounds."""
    position = {key: index for index, key in enumerate(rounds)}
    costliest = sorted(by_device, key=lambda device: -by_device[device])[:_DRAWN_DEVICES]
    series: list[DeviceSeries] = []
    for device in costliest:
        own = sorted(events_of(events, device), key=lambda event: position[event.run_id, event.server_round])
        wanted = _evaluated(len(own), len(costliest))
        points = tuple(
            (position[event.run_id, event.server_round], epsilon(own[: index + 1], target_delta=target_delta))
            for index, event in enumerate(own)
            if index in wanted
        )
        series.append(DeviceSeries(device_id=device, points=points))
    return tuple(series)
