"""`lamella privacy epsilon` and `lamella privacy plan`: what noise costs, before anything runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.console import console, show_json
from server.cli.rollout_options import AsJson
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.planning import Alternatives, Plan

_SHOWN_ROUNDS = 12
_BAR_CHARS = 40

Delta = Annotated[float, typer.Option("--target-delta", help="The small probability that ε leaves open.")]
Noise = Annotated[
    float | None, typer.Option("--noise-multiplier", help="Noise over the clipping norm.", min=0, show_default=False)
]


def epsilon(
    sampling_probability: Annotated[float, typer.Option(help="The chance of an example to enter a step.")],
    noise_multiplier: Annotated[float, typer.Option(help="Noise over the clipping norm.", min=0)],
    steps: Annotated[int, typer.Option(help="Noisy steps in all.", min=1)],
    target_delta: Delta = 1e-5,
    as_json: AsJson = False,
) -> None:
    """What noisy steps cost: ε by the accountant that is reported (PLD), and by two others to hold it against."""
    from privacy.second_opinions import PRV_ERROR, opinions_of

    try:
        found = opinions_of(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            steps=steps,
            target_delta=target_delta,
        )
    except ValueError as error:
        raise ConfigurationError(f"{error}.") from None
    if as_json:
        show_json({"pld": _json(found.pld), "rdp": _json(found.rdp), "prv": found.prv, "agree": found.agree})
        return
    console.print(f"ε ≤ [bold]{found.pld:.4f}[/] at δ = {target_delta:g} (PLD, which is what reports state)")
    prv = "not computed: too little noise" if found.prv is None else f"{found.prv:.4f} ± {PRV_ERROR:g}"
    console.print(f"RDP {found.rdp:.4f} (a looser bound by another proof), PRV {prv}")
    if not found.agree:
        console.print("[red]They do not agree: do not rely on any of them, and report this.[/]")


def plan(
    rounds: Annotated[int, typer.Option(help="Rounds that one device takes part in.", min=1)],
    examples: Annotated[int, typer.Option(help="Examples of one device.", min=1)],
    steps: Annotated[int, typer.Option(help="Noisy steps in a round (`local-steps`).", min=1)] = 4,
    batch_size: Annotated[int, typer.Option(help="Expected examples in a step (`batch-size`).", min=1)] = 8,
    target_epsilon: Annotated[
        float | None, typer.Option(help="The budget of a device.", min=0, show_default=False)
    ] = None,
    noise_multiplier: Noise = None,
    target_delta: Delta = 1e-5,
    picture: Annotated[Path | None, typer.Option(help="Draw ε over the rounds: a file .svg or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run's privacy per example: the noise for a budget, or the cost of a noise, and what to change.

    `lamella privacy plan-users` does it for whole users; a run of privacy-mode both has both plans, never added up.

    With --target-epsilon alone the least noise is found; with --noise-multiplier alone the cost is told; with both it
    is said whether it fits, and which single change would make it fit.
    """
    from privacy.errors import CalibrationError
    from privacy.planning import Training, alternatives, plan_for_budget, plan_with_noise

    if target_epsilon is None and noise_multiplier is None:
        raise ConfigurationError("Give --target-epsilon, --noise-multiplier or both.")
    training = Training(examples=examples, batch_size=batch_size, steps=steps, rounds=rounds)
    try:
        if noise_multiplier is not None:
            found = plan_with_noise(training, noise_multiplier=noise_multiplier, target_delta=target_delta)
        else:
            found = plan_for_budget(training, target_epsilon=target_epsilon or 0.0, target_delta=target_delta)
    except (CalibrationError, ValueError) as error:
        raise ConfigurationError(f"There is no such plan: {error}.") from None
    is_over = target_epsilon is not None and found.epsilon > target_epsilon
    changes = alternatives(found, target_epsilon=target_epsilon or 0.0) if is_over else None
    if picture is not None:
        from server.cli.privacy_picture import EpsilonPicture, draw_epsilon

        drawn = EpsilonPicture(
            epsilon_after=found.epsilon_after,
            target_delta=target_delta,
            target_epsilon=target_epsilon,
            rounds="rounds that a device took part in",
            title=f"Noise multiplier {found.noise_multiplier:g}, {training.steps} steps a round, "
            f"one example in {1 / training.sampling_probability:.3g}",
        )
        draw_epsilon(drawn, picture)
    if as_json:
        show_json(_as_json(found, target_epsilon, changes))
        return
    _print(found, target_epsilon)
    if changes is not None:
        _print_changes(found, changes)
    if picture is not None:
        console.print(f"Picture: {picture}", soft_wrap=True)


def _print(found: Plan, target_epsilon: float | None) -> None:
    training = found.training
    console.print(
        f"Noise multiplier [bold]{found.noise_multiplier:g}[/], sampling probability "
        f"{training.sampling_probability:.4g}, {training.steps} steps a round, δ = {found.target_delta:g}"
    )
    print_rounds(found.epsilon_after, target_epsilon)


def print_rounds(epsilon_after: Sequence[float], target_epsilon: float | None) -> None:
    """A bar for ε after each of some rounds, and how the last one stands to the budget."""
    last = epsilon_after[-1]
    largest = max(last, target_epsilon or 0.0)
    for number in _shown(len(epsilon_after)):
        value = epsilon_after[number - 1]
        is_within = target_epsilon is None or value <= target_epsilon
        length = round(_BAR_CHARS * value / largest) if math.isfinite(value) and largest else _BAR_CHARS
        bar = f"[{'cyan' if is_within else 'red'}]{'━' * max(length, 1)}[/]"
        console.print(f"round {number:>6}  ε {value:8.3f}  {bar}")
    if target_epsilon is not None:
        verdict = "within" if last <= target_epsilon else "[red]over[/]"
        console.print(f"After {len(epsilon_after)} rounds: ε ≤ {last:.3f}, {verdict} the budget of {target_epsilon:g}")


def _shown(rounds: int) -> list[int]:
    """Some rounds, spread evenly, the first and the last among them."""
    if rounds <= _SHOWN_ROUNDS:
        return list(range(1, rounds + 1))
    return sorted({1 + round(i * (rounds - 1) / (_SHOWN_ROUNDS - 1)) for i in range(_SHOWN_ROUNDS)})


def _print_changes(found: Plan, changes: Alternatives) -> None:
    console.print("Any one of these alone makes it fit:")
    training = found.training
    said = (
        (changes.noise_multiplier, f"more noise: {changes.noise_multiplier}, not {found.noise_multiplier:g}"),
        (changes.rounds, f"fewer rounds: {changes.rounds}, not {training.rounds}"),
        (changes.batch_size, f"smaller batches: {changes.batch_size}, not {training.batch_size}"),
        (changes.examples, f"devices with more examples: {changes.examples}, not {training.examples}"),
    )
    for value, text in said:
        if value is not None:
            console.print(f"  - {text}")
    if all(value is None for value, _ in said):
        console.print("  (none: the budget is too small for any of them alone)")


def _as_json(found: Plan, target_epsilon: float | None, changes: Alternatives | None) -> dict[str, Any]:
    return {
        "noise_multiplier": found.noise_multiplier,
        "sampling_probability": found.training.sampling_probability,
        "target_delta": found.target_delta,
        "target_epsilon": target_epsilon,
        "epsilon": _json(found.epsilon),
        "epsilon_after": [_json(value) for value in found.epsilon_after],
        "fits": None if target_epsilon is None else found.epsilon <= target_epsilon,
        "alternatives": None if changes is None else _fields(changes),
    }


def _fields(changes: Alternatives) -> dict[str, float | int | None]:
    return {
        "noise_multiplier": changes.noise_multiplier,
        "rounds": changes.rounds,
        "batch_size": changes.batch_size,
        "examples": changes.examples,
    }


def _json(value: float) -> float | str:
    """A number, or what JSON has no number for."""
    return value if math.isfinite(value) else "infinity"
