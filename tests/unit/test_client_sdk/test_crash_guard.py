"""A version that ends the application before it ever answered gives way after three tries."""

from collections.abc import Callable
from pathlib import Path

import pytest
from simulators.faulty_disk import FaultyDisk
from simulators.update_service import FakeUpdateService
from simulators.versions import write_tree

from client_sdk import Device, OfferRefusedError
from client_sdk.crash_guard import MAX_STARTS, CrashGuard, Starts
from client_sdk.lock import update_lock
from client_sdk.slots import SlotRecord, SlotStore
from client_sdk.state import StateFile
from delta_updates import Outcome

OpenDevice = Callable[..., Device]


class App:
    """The application's processes, one after another; each opens the guard anew, after the one before has died."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.guard: CrashGuard | None = None
        self.disk = FaultyDisk(home / "stash")
        self.states = StateFile(home, self.disk)
        self.slots = SlotStore(home / "slots", self.disk)

    def serving(self) -> SlotRecord:
        record = self.slots.pointer().confirmed
        assert record is not None
        return record

    def start(self) -> tuple[CrashGuard, int]:
        self.die()
        return self.start_beside()

    def start_beside(self) -> tuple[CrashGuard, int]:
        """Another process, while those before live on."""
        self.guard = CrashGuard(self.home, self.states, self.slots, self.disk)
        self.guard.start(self.serving())
        return self.guard, self.serving().version

    def die(self) -> None:
        """What the kernel does for a process that is killed."""
        if self.guard is not None and self.guard._mark is not None:
            self.guard._mark.die()


@pytest.fixture
def app(service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice) -> App:
    """v2 serves, v1 served before."""
    device: Device = open_device()
    device.update()
    service.publish(write_tree(tmp_path / "v2", base_seed=1, adapter_seed=2), version=2, deltas_from=(1,))
    device.update()
    return App(tmp_path / "home")


def test_three_crashes_and_the_version_before_serves_again(
    app: App, service: FakeUpdateService, open_device: OpenDevice
) -> None:
    assert [app.start()[1] for _ in range(MAX_STARTS)] == [2, 2, 2]
    assert app.start()[1] == 1
    state = app.states.load()
    assert [failed.version for failed in state.failed] == [2]
    assert "3 times" in state.failed[0].reason
    assert (state.outbox[-1].outcome, state.outbox[-1].version) == (Outcome.REVERTED, 2)
    # It is not taken again, and the counter never goes down.
    with pytest.raises(OfferRefusedError, match="failed its self-test on this device"):
        open_device().update()
    assert open_device().status().highest_version == 2
    assert (2, "reverted") in service.outcomes()


def test_one_answer_settles_it(app: App) -> None:
    for _ in range(MAX_STARTS - 1):
        app.start()
    guard, _ = app.start()
    guard.answered(app.serving())
    assert [app.start()[1] for _ in range(10)] == [2] * 10


def test_an_orderly_end_is_no_crash(app: App) -> None:
    for _ in range(10):
        guard, version = app.start()
        assert version == 2
        guard.stop()


def test_processes_that_start_together_are_no_crashes(app: App) -> None:
    guards = [app.start_beside()[0] for _ in range(4 * MAX_STARTS)]
    assert app.serving().version == 2
    for guard in guards[1:]:
        guard.stop()
    assert app.start_beside()[1] == 2
    app.die()
    guards[0].answered(app.serving())
    assert not list((app.home / "slots").glob("start-*"))
    assert [app.start()[1] for _ in range(10)] == [2] * 10


def test_of_many_that_start_together_the_dead_count(app: App) -> None:
    for _ in range(MAX_STARTS):
        app.start_beside()
        app.die()
    assert app.start_beside()[1] == 1


def test_counts_of_the_release_before_are_read(app: App) -> None:
    text = Starts(tree_hash=app.serving().tree_hash, unanswered=MAX_STARTS).model_dump_json(exclude={"starting"})
    (app.home / "slots" / "starts.json").write_text(text)
    assert app.start()[1] == 1


def test_one_process_counts_once_however_often_it_loads(app: App) -> None:
    guard, _ = app.start()
    for _ in range(10):
        guard.start(app.serving())
    assert app.start()[1] == 2


def test_during_an_update_nothing_is_left(app: App) -> None:
    for _ in range(MAX_STARTS):
        app.start()
    with update_lock(app.home):
        assert app.start()[1] == 2
    assert app.start()[1] == 1


def test_a_damaged_version_before_is_no_way_back(app: App) -> None:
    before = app.slots.pointer().previous
    assert before is not None
    weights = app.slots.tree_of(before) / "base" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.unlink()  # a hard link to the other slot's
    weights.write_bytes(raw)
    assert [app.start()[1] for _ in range(MAX_STARTS + 3)] == [2] * (MAX_STARTS + 3)


def test_a_power_cut_while_falling_back_is_finished_by_the_next_start(app: App) -> None:
    for _ in range(MAX_STARTS):
        app.start()
    pointer = app.slots.pointer()

    def cut(_new: object) -> None:
        raise SystemExit("power")

    app.slots._save = cut  # type: ignore[method-assign,assignment]
    with pytest.raises(SystemExit):
        app.start()
    again = App(app.home)
    assert again.slots.pointer() == pointer
    assert again.start()[1] == 1


def test_the_next_update_takes_the_way_back_away(
    app: App, service: FakeUpdateService, tmp_path: Path, open_device: OpenDevice
) -> None:
    service.publish(write_tree(tmp_path / "v3", base_seed=1, adapter_seed=3), version=3, deltas_from=(2,))
    open_device().update()
    pointer = app.slots.pointer()
    assert pointer.previous is not None
    assert pointer.previous.version == 2
    assert len({pointer.previous.slot, app.serving().slot}) == 2
