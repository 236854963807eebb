"""The way out of a crash loop: a version that ends the application three times without one answer gives way.

The self-test proves that a version runs in a process of its own; whether it runs inside the application, with its
memory and its other libraries, only the application can show. So each start of a version that never answered here is
noted, durably and before the model is opened, and counts as soon as its process is dead without having ended in order:
several processes that open a new version at once count for nothing. The first whole answer settles it for good.
"""

import atexit
import logging
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client_sdk.disk import Disk, replace_file
from client_sdk.errors import DeviceError, UpdateInProgressError
from client_sdk.living import Fate, LivingMark, fate_of, remove_dead_marks
from client_sdk.lock import update_lock
from client_sdk.slots import SlotRecord, SlotStore
from client_sdk.state import FailedVersion, StateFile
from delta_updates import Outcome, OutcomeReport

MAX_STARTS = 3
_MAX_FILE_BYTES = 1 << 12
_MOST_STARTING = 100
_logger = logging.getLogger(__name__)


class Starts(BaseModel):
    """The content of `slots/starts.json`: how often this version was started and ended without an answer.

    `starting` names the marks (`LivingMark`) of those that have not answered yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tree_hash: str = ""
    unanswered: int = 0
    starting: tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...] = ()
    is_settled: bool = False


class CrashGuard:
    """Counts the starts of one device's versions. Its file is only a count: a lost or damaged one begins anew."""

    def __init__(self, home: Path, states: StateFile, slots: SlotStore, disk: Disk) -> None:
        self._home = home
        self._states = states
        self._slots = slots
        self._disk = disk
        self._folder = home / "slots"
        self._path = self._folder / "starts.json"
        self._open: SlotRecord | None = None
        self._mark: LivingMark | None = None

    def start(self, record: SlotRecord) -> None:
        """Count a start of the version that serves; after three without an answer, the one before it serves again.

        The caller reads the pointer again afterwards. Where there is no way back, nothing changes.
        """
        starts = self._read(record)
        if starts.is_settled or (self._open and self._open.tree_hash == record.tree_hash):
            return
        fates = {mark: fate_of(self._folder, mark) for mark in starts.starting}
        died = sum(fate is Fate.DIED for fate in fates.values())
        alive = tuple(mark for mark, fate in fates.items() if fate is Fate.ALIVE)[-_MOST_STARTING:]
        starts = starts.model_copy(update={"unanswered": starts.unanswered + died, "starting": alive})
        if died:
            # Their marks are gone: they count from now on, whatever happens next.
            self._write(starts)
        if starts.unanswered >= MAX_STARTS and self._leave(record):
            return
        self._forget_mark()
        try:
            self._mark = LivingMark(self._folder)
        except OSError as error:
            _logger.warning("the starts of this version cannot be counted: %s", error)
            return
        self._write(starts.model_copy(update={"starting": (*alive, self._mark.name)}))
        if self._open is None:
            atexit.register(self.stop)
        self._open = record

    def answered(self, record: SlotRecord) -> None:
        """Note that a version gave a whole answer: it is not held against it any more."""
        if self._open is not None and self._open.tree_hash == record.tree_hash:
            self._open = None
            self._write(Starts(tree_hash=record.tree_hash, is_settled=True))
            self._forget_mark()
            remove_dead_marks(self._folder)

    def stop(self) -> None:
        """Take the start back: an application that ends in order did not crash."""
        if self._open is not None:
            starts = self._read(self._open)
            self._open = None
            if self._mark is not None:
                left = tuple(mark for mark in starts.starting if mark != self._mark.name)
                self._write(starts.model_copy(update={"starting": left}))
        self._forget_mark()

    def _forget_mark(self) -> None:
        if self._mark is not None:
            self._mark.remove()
            self._mark = None

    def _leave(self, record: SlotRecord) -> bool:
        """Fall back, and remember why; False when there is nothing to fall back to, or an update is in the way."""
        reason = f"the application ended {MAX_STARTS} times in a row without one answer of this version"
        try:
            with update_lock(self._home):
                pointer = self._slots.pointer()
                if pointer.confirmed != record or pointer.previous is None or pointer.test is not None:
                    return False
                failed = FailedVersion(version=record.version, tree_hash=record.tree_hash, reason=reason)
                report = OutcomeReport(
                    offer_id=record.offer_id, version=record.version, outcome=Outcome.REVERTED, reason=reason
                )
                # Remembered first: after a cut between the two writes the next start does both again.
                self._states.save(self._states.load().with_failed(failed).with_report(report))
                before = self._slots.fall_back()
        except UpdateInProgressError:
            return False  # the update brings another version, and needs the other slot for it
        except DeviceError as error:
            _logger.warning("v%d crashes, but there is no way back now: %s", record.version, error)
            return False
        if before is not None:
            _logger.warning("v%d serves again: v%d was left, as %s", before.version, record.version, reason)
        return before is not None

    def _read(self, record: SlotRecord) -> Starts:
        fresh = Starts(tree_hash=record.tree_hash)
        try:
            with self._path.open("rb") as file:
                starts = Starts.model_validate_json(file.read(_MAX_FILE_BYTES))
        except (OSError, ValidationError):
            return fresh
        return starts if starts.tree_hash == record.tree_hash else fresh

    def _write(self, starts: Starts) -> None:
        try:
            replace_file(self._disk, self._path, starts.model_dump_json().encode())
        except OSError as error:
            # A read-only disk must not keep the application from answering.
            _logger.warning("the starts of this version cannot be counted: %s", error)
