"""`lamella train federated`: one run, from the recipe to the last round, watched."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as distribution_version
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from server.cli.auditing import audited
from server.cli.console import Service, console, open_service, problems, show_json, words_aside
from server.cli.rollout_options import AsJson
from server.cli.stopping import raise_if_asked
from server.errors import FederationError, RecipeError
from server.federation.recipe import Recipe

if TYPE_CHECKING:
    from server.federation.flower import FlowerHome, FlowerRun

app = typer.Typer(no_args_is_help=True, help="Fine-tune a model on a fleet.")

_ROUNDS_TO_SPREAD = 4
_COHORTS_TO_SPREAD = 3


@app.command()
def federated(
    model: Annotated[str, typer.Option(help="Name of the model in the registry.")] = "",
    rounds: Annotated[int | None, typer.Option(help="Rounds in this run (num-server-rounds).")] = None,
    cohort: Annotated[int | None, typer.Option(help="Devices asked per round.")] = None,
    quorum: Annotated[int | None, typer.Option(help="Fewest replies for a round; default: half the cohort.")] = None,
    target_epsilon: Annotated[float | None, typer.Option(help="Privacy budget of a device, example level.")] = None,
    adapter_format: Annotated[
        str | None, typer.Option(help="In what a release holds the adapter: float16, int8 or int4.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the recipe; repeatable.")
    ] = None,
    simulate: Annotated[int | None, typer.Option(help="Simulate this many devices on this machine.", min=1)] = None,
    fleet: Annotated[Path | None, typer.Option(help="Folder of the simulated fleet (kept between runs).")] = None,
    data: Annotated[str | None, typer.Option(help="Text: chitchat, docstrings or jsonl:FOLDER.")] = None,
    superlink: Annotated[str | None, typer.Option(help="host:port of a running SuperLink with SuperNodes.")] = None,
    root_certificates: Annotated[Path | None, typer.Option(help="CA certificate of that SuperLink.")] = None,
    resume: Annotated[str | None, typer.Option(help="Run id to go on with after its last round.")] = None,
    cpus_per_device: Annotated[int, typer.Option(help="CPU cores per simulated device.", min=1)] = 2,
    as_json: AsJson = False,
) -> None:
    """Run federated fine-tuning and show every round; exits with 1 when the run failed."""
    words_aside(as_json)
    if (simulate is None) == (superlink is None):
        raise RecipeError("Say where to train: --simulate DEVICES on this machine, or --superlink HOST:PORT.")
    service = open_service()
    chosen = {
        "model": model or None,
        "num-server-rounds": rounds,
        "cohort": cohort,
        "quorum": quorum,
        "target-epsilon": target_epsilon,
        "adapter-format": adapter_format,
        "data": data,
    }
    if superlink is not None and resume is None:
        chosen["privacy-mode"] = "both"  # for a fleet; `--set privacy-mode=...` decides otherwise
    recipe = _recipe(service, chosen, setting or [], resume=resume)
    if superlink is not None and resume is None:
        recipe = _spread(service, recipe, setting or [])
    from server.federation.flower import start_run, wait_until_listening

    _tell_ended_promises(service, recipe)
    with (
        audited(service.registry, "run.train", f"{recipe.model}, run {resume or recipe.run_name}", is_long=True),
        _superlink(service, superlink, root_certificates=root_certificates) as (home, address),
    ):
        with console.status("Starting Flower and preparing the devices ..."):
            if simulate is not None:
                recipe = _with_fleet(service, recipe, devices=simulate, folder=fleet)
            app_folder = home.write_app(recipe, version=distribution_version("lamella"))
            wait_until_listening(address, home.log)
        start = partial(start_run, home, app_folder, devices=simulate, cpus_per_device=cpus_per_device)
        watch(service, recipe, start)
    if as_json:
        run_id = recipe.resume_run or recipe.run_name
        rounds_of = [vars(row) for row in service.registry.rounds(run_id)]
        show_json(vars(service.registry.run(run_id)) | {"rounds": rounds_of})


def _recipe(service: Service, chosen: Mapping[str, object], settings: list[str], *, resume: str | None) -> Recipe:
    """The recipe: of the run to resume or the defaults, then the options, then `--set`."""
    values: dict[str, object] = {}
    if resume is not None:
        values |= dict(service.registry.run(resume).recipe) | {"resume-run": resume, "run-name": ""}
    values |= {key: value for key, value in chosen.items() if value is not None}
    for item in settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(f"--set takes KEY=VALUE, got {item!r}.")
        values[key.strip()] = value.strip()
    if str(values.get("data", "")).startswith("jsonl:"):
        # The ServerApp runs in another folder: a relative path would mean something else there.
        values["data"] = f"jsonl:{Path(str(values['data']).removeprefix('jsonl:')).expanduser().absolute()}"
    if "model" not in values:
        raise RecipeError("Say which model to fine-tune with --model; `lamella versions` lists them.")
    if "quorum" not in values and str(values.get("cohort", "")).isdecimal():
        values["quorum"] = max(1, int(str(values["cohort"])) // 2)
    if resume is None and not values.get("run-name"):
        values["run-name"] = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{token_hex(2)}"
    return Recipe.from_run_config(values)


def _spread(service: Service, recipe: Recipe, settings: list[str]) -> Recipe:
    """Let no device of a large fleet take part in two rounds in a row: users' noise is then made for half as many.

    Only where nobody decided otherwise, and the fleet is large enough that the others fill the rounds.
    """
    named = {item.partition("=")[0].strip() for item in settings}
    if not recipe.has_user_level or named & {"max-participations", "min-separation", "cohort-sampling"}:
        return recipe
    enrolled = sum(device.model == recipe.model and not device.revoked_at for device in service.registry.devices())
    rounds = recipe.num_server_rounds
    if rounds < _ROUNDS_TO_SPREAD or enrolled < _COHORTS_TO_SPREAD * recipe.cohort:
        return recipe
    half = -(-rounds // 2)
    console.print(
        f"Each device takes part in {half} of {rounds} rounds at most, and in no two in a row (max-participations, "
        "min-separation; --set changes them).",
        soft_wrap=True,
    )
    return recipe.model_copy(update={"max_participations": half, "min_separation": 2})


def _tell_ended_promises(service: Service, recipe: Recipe) -> None:
    """Say beforehand which promise of the model this run will end: what has no noise for a unit protects it no more."""
    from privacy.event import UNITS
    from privacy.promises import promised

    events = service.registry.privacy_events(model=recipe.model)
    protects = {"example": recipe.has_example_level, "user": recipe.has_user_level}
    for unit in UNITS:
        if not protects[unit] and promised(events, unit):
            problems.print(
                f"[yellow]This run has no noise per {unit}: with it ends what earlier runs of {recipe.model} promised "
                f"per {unit}. `--set privacy-mode=both` keeps it.[/]",
                soft_wrap=True,
            )


def _with_fleet(service: Service, recipe: Recipe, *, devices: int, folder: Path | None) -> Recipe:
    """Make sure the simulated fleet is there and stands on the model's newest base."""
    from server.federation.bases import base_of, newest_release, tree_of
    from server.federation.fleet import make_fleet

    where = (folder or service.settings.home / "fleets" / recipe.model).absolute()
    base = base_of(service.registry, newest_release(service.registry, recipe.model))
    tree = tree_of(service.settings, service.registry, service.artifacts, model=recipe.model, version=base.number)
    make_fleet(where, tree=tree, data=recipe.data, devices=devices)
    return recipe.model_copy(update={"fleet": str(where)})


@contextlib.contextmanager
def _superlink(
    service: Service, address: str | None, *, root_certificates: Path | None
) -> Iterator[tuple[FlowerHome, str]]:
    """A Flower home that is connected to the given SuperLink, or to a private one that ends with this command."""
    from server.federation.flower import FlowerHome, simulation_superlink

    home = FlowerHome(service.settings.home / "flower")
    if address is not None:
        home.write_connection(address, root_certificates=root_certificates)
        yield home, address
        return
    with simulation_superlink(home, extra_environment=_settings_environment(service)) as local:
        home.write_connection(local, root_certificates=None)
        yield home, local


def _settings_environment(service: Service) -> dict[str, str]:
    """The settings that the ServerApp, a grandchild of this process, reads again."""
    home = {"LAMELLA_HOME": str(service.settings.home)}
    url = service.settings.database_url
    return home | ({"LAMELLA_DATABASE_URL": url.get_secret_value()} if url else {})


def watch(service: Service, recipe: Recipe, start: Callable[[], FlowerRun]) -> None:
    """Show the rounds as the registry receives them; raise when the run did not complete."""
    run_id = recipe.resume_run or recipe.run_name
    console.print(
        f"Run [bold]{run_id}[/]: {recipe.num_server_rounds} rounds, cohort {recipe.cohort}, quorum {recipe.quorum}"
    )
    for is_last_try in (False, True):
        run = start()
        with _progress() as progress:
            view = _RoundView(service, recipe, run_id, progress)
            try:
                status = run.wait(on_poll=view.refresh)
            except KeyboardInterrupt:
                problems.print("Stopping the run ...")
                run.stop()
                raise
        ended = view.ended()
        if status.is_completed and ended is not None and ended[0] == "completed":
            console.print(f"Run [bold]{run_id}[/] completed. Next: lamella release {run_id}")
            return
        if ended is not None or view.has_begun() or is_last_try:
            break
        # Seen: the first connection of a ServerApp to a SuperLink with TLS was closed. Nothing has happened yet.
        problems.print(f"Flower could not start the run ({escape(status.details or status.word)}); trying once more.")
    told = ended and ended[1]
    if not told:  # our own reason says more than Flower's log
        problems.print(run.log_tail(), markup=False, highlight=False)
    reason = told or status.details or "the ServerApp did not start"
    kept = f" What was reached is kept; go on with --resume {run_id}." if view.has_begun() else ""
    raise FederationError(f"Run {run_id} failed ({status.word}): {reason.rstrip('.')}.{kept}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


class _RoundView:
    """One progress bar over the rounds, and one printed line a round."""

    def __init__(self, service: Service, recipe: Recipe, run_id: str, progress: Progress) -> None:
        self._service, self._recipe, self._run_id, self._progress = service, recipe, run_id, progress
        self._task = progress.add_task("Rounds", total=recipe.num_server_rounds, facts="waiting for devices")
        self._started_at = datetime.now(UTC)
        self._shown = 0
        self._next_look = 0.0

    def has_begun(self) -> bool:
        """Whether the registry has heard of the run."""
        from server.errors import NotFoundError

        with contextlib.suppress(NotFoundError):
            return bool(self._service.registry.run(self._run_id))
        return False

    def ended(self) -> tuple[str, str] | None:
        """Status and reason once the registry says that the run is over."""
        from server.errors import NotFoundError

        with contextlib.suppress(NotFoundError):
            record = self._service.registry.run(self._run_id)
            # A run that is resumed still says how it ended the last time until its first new round.
            if record.finished_at is not None and record.finished_at >= self._started_at:
                return record.status, record.reason
        return None

    def refresh(self) -> str | None:
        """Look at the registry, at most once a second; how the run ended, or None."""
        raise_if_asked()
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + 1.0
        ended = self.ended()  # asked first: rounds that were written before the end are then all shown
        for row in self._service.registry.rounds(self._run_id)[self._shown :]:
            self._shown += 1
            spent = self._spent()
            loss = "-" if row.held_out_loss is None else f"{row.held_out_loss:.4f}"
            facts = f"loss {loss}  replies {row.replies}/{self._recipe.cohort}  {spent}"
            self._progress.console.print(f"  round {row.server_round}: {row.status}  {facts}")
            for node, why in row.failures.items():
                self._progress.console.print(f"    node {node}: {why}", style="yellow", highlight=False, markup=False)
            self._progress.update(self._task, completed=row.server_round, facts=facts)
        return ended and ended[0]

    def _spent(self) -> str:
        """The largest ε that has been spent so far, over all runs of this model, for each unit that is protected."""
        from privacy.accountant import epsilon_by_device
        from privacy.user_level import epsilon_by_population

        recipe, told = self._recipe, []
        events = self._service.registry.privacy_events(model=recipe.model)
        if recipe.has_example_level:
            by_device = epsilon_by_device(events, target_delta=recipe.target_delta)
            told.append(f"ε {max(by_device.values(), default=0.0):.2f}")
        if recipe.has_user_level:
            by_population = epsilon_by_population(events, target_delta=recipe.user_target_delta)
            told.append(f"ε per user {by_population.get(recipe.model, 0.0):.2f}")
        return "  ".join(told)
