"""The self-test in a process of its own: whatever a version does there, the device that tests it goes on.

A crash, a hang, or a kill for want of memory is a failed self-test; the memory goes back with the process; and the
process ends by itself when its parent is gone.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from client_sdk.device_config import DeviceConfig, SelfTestLimits
from client_sdk.errors import ConfigurationError, DeviceDiskError, DeviceError, MissingExtraError, SelfTestError
from client_sdk.health import HealthFacts, self_test
from client_sdk.slots import SlotStore
from delta_updates import VersionManifest
from delta_updates.memory import peak_memory_bytes

_MAX_ANSWER_BYTES = 1 << 16
_FACTS = TypeAdapter(HealthFacts)
_ERRORS: dict[str, type[DeviceError]] = {
    error.__name__: error for error in (SelfTestError, DeviceDiskError, MissingExtraError, ConfigurationError)
}


class Task(BaseModel):
    """What the process is told on its standard input, as one line of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tree: Path
    manifest: VersionManifest
    limits: SelfTestLimits
    serving: Path | None
    probe: Path | None


class SelfTestProcess:
    """A self-test that starts `python -m client_sdk.self_test_process` for each version."""

    def __init__(self, home: Path, slots: SlotStore) -> None:
        self._home = home
        self._slots = slots

    def __call__(self, tree: Path, manifest: VersionManifest) -> HealthFacts:
        """Test a version against the one that serves.

        Raises:
            SelfTestError, DeviceDiskError, MissingExtraError: as `self_test`; a crash or a hang is the former.
            ConfigurationError: `device.toml`.
        """
        limits = DeviceConfig.read(self._home).self_test
        active = self._slots.active()
        # A repair: the same version serves, damaged, and is no measure of itself.
        is_repair = active is not None and active.manifest.tree_hash == manifest.tree_hash
        task = Task(
            tree=tree,
            manifest=manifest,
            limits=limits,
            serving=active.tree if active and not is_repair else None,
            probe=self._home / limits.probe,
        )
        return run_task(task)


def run_task(task: Task) -> HealthFacts:
    """Run one self-test in a new process and wait for it."""
    version = task.manifest.version
    process = subprocess.Popen(
        [sys.executable, "-m", "client_sdk.self_test_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # Ctrl-C is for the one that started it, who ends it in order
    )
    try:
        # Standard input stays open: its end tells the process that nobody waits any more.
        assert process.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
        process.stdin.write(task.model_dump_json().encode() + b"\n")
        process.stdin.flush()
        answer = _read(process, task.limits.max_seconds)
    except BrokenPipeError:
        process.wait()
        answer = b""
    except TimeoutError:
        raise SelfTestError(
            f"v{version} was not done with its self-test after {task.limits.max_seconds:g} s."
        ) from None
    finally:
        process.kill()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
    return _judge(answer, code, task)


def _read(process: "subprocess.Popen[bytes]", timeout_s: float) -> bytes:
    """The answer's line; bounded in size and time."""
    found: list[bytes] = []
    stream = process.stdout
    assert stream is not None  # noqa: S101 - as above
    reader = threading.Thread(target=lambda: found.append(stream.readline(_MAX_ANSWER_BYTES)), daemon=True)
    reader.start()
    reader.join(timeout_s)
    if reader.is_alive():
        process.kill()
        reader.join()
        raise TimeoutError
    if not found[0]:
        # It ended without a word: how, is its exit status, which `kill` must not replace.
        process.wait()
    return found[0]


def _judge(answer: bytes, code: int, task: Task) -> HealthFacts:
    version, limits = task.manifest.version, task.limits
    if not answer:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        raise SelfTestError(f"v{version} does not run: the process that tested it {how}.")
    try:
        parsed: dict[str, Any] = json.loads(answer)
        if "error" in parsed:
            raise _ERRORS[str(parsed["error"])](str(parsed["message"]))
        facts = _FACTS.validate_python(parsed)
    except (ValueError, KeyError, TypeError, ValidationError):
        raise SelfTestError(f"v{version} does not run: the process that tested it answered nonsense.") from None
    peak = facts.peak_memory_bytes
    if limits.max_memory_bytes is not None and peak is not None and peak > limits.max_memory_bytes:
        raise SelfTestError(
            f"v{version} needs {peak / 1e6:.0f} MB of memory; this device allows "
            f"{limits.max_memory_bytes / 1e6:.0f} MB."
        )
    return facts


def main() -> None:
    """Do the task from standard input, and answer on standard output."""
    task = Task.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer: dict[str, Any]
    try:
        facts = self_test(task.tree, task.manifest, limits=task.limits, serving=task.serving, probe=task.probe)
        answer = dataclasses.asdict(facts) | {"peak_memory_bytes": peak_memory_bytes()}
    except DeviceError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Not through the interpreter's end, which takes as long as torch likes.
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
