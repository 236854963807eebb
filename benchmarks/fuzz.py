"""Feed mutated packages to everything that reads them, and count what comes out.

    python benchmarks/fuzz.py --mutations 1000000 [--first 0] [--seed 0] [--workers 2] [--json]
    python benchmarks/fuzz.py --case 4711 [--seed 0]            # one case again, with its traceback; --keep FILE

Each case is a tiny package with good checksums and bad contents (`package_mutations.py`), full or a delta. It is read
whole, and then applied: even cases beside their source, odd ones in place to a copy of it. What is right: an error of
`delta_updates` that leaves everything as it was, or exactly the tree that the header promises. What is wrong, and makes
this end with 1: another exception, a dead process, more than --seconds for a case, a changed source, a file outside the
target, work left behind, or more memory than --megabytes above the interpreter.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from package_mutations import mutated
from tiny_versions import tiny_versions

from delta_updates import DeltaError, apply_in_place, apply_package, build_package, verify_tree
from delta_updates.memory import peak_memory_bytes
from delta_updates.package import PackageHeader, PackageReader

_PIECE = 2_000
_MAX_TARGET_BYTES = 32 << 20
_MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - only as the parent of a folder made by `tempfile`


@dataclass
class Report:
    """What a number of cases came to."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest_case: int = -1
    peak_bytes: int = 0

    def add(self, other: "Report") -> None:
        """Count the cases of another report as well."""
        self.cases += other.cases
        self.outcomes += other.outcomes
        self.failures += other.failures
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        if other.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest_case = other.slowest_s, other.slowest_case


class WrongError(Exception):
    """Something happened that must never happen."""


class Sandbox:
    """A folder with two versions and the packages between them, deep enough that a path that climbs stays in it."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._top = folder
        self._seed = seed
        home = folder / "1/2/3/4/5/6"
        self.source, self.slots, self._package = home / "source", home / "slots", home / "package"
        self._target, self._tree, self._journal = (self.slots / name for name in ("target", "tree", "journal"))
        self.slots.mkdir(parents=True)
        old, new = tiny_versions()
        for name, files in (("source", old), ("new", new)):
            for path, content in files.items():
                (home / name / path).parent.mkdir(parents=True, exist_ok=True)
                (home / name / path).write_bytes(content)
        self.packages: list[bytes] = []
        for start in (self.source, None):
            build_package(start, home / "new", self._package)
            self.packages.append(self._package.read_bytes())
        shutil.rmtree(home / "new")
        self._before = self._seen()

    def run(self, case: int) -> str:
        """Return what became of a case; raises what `run_bytes` raises."""
        return self.run_bytes(mutated(self.packages, case, seed=self._seed), in_place=case % 2 == 1)

    def run_bytes(self, raw: bytes, *, in_place: bool) -> str:
        """Return what became of a package.

        Raises:
            WrongError: What must never be.
        """
        self._package.write_bytes(raw)
        try:
            with PackageReader(self._package) as reader:
                header = reader.header
                is_readable = self._is_readable(reader)
        except DeltaError as error:
            # The others would begin with the same header, and end there.
            return f"header: {type(error).__name__}"
        outcome = self._apply_in_place(header) if in_place else self._apply_beside(header)
        if outcome == "applied" and not is_readable:
            raise WrongError("applied, although it cannot be read")
        if (after := self._seen()) != self._before:
            raise WrongError(f"{outcome}, and then: {sorted(set(after) ^ set(self._before))}")
        return f"{'in place' if in_place else 'beside'}: {outcome}"

    @staticmethod
    def _is_readable(reader: PackageReader) -> bool:
        try:
            for packaged in reader.header.files:
                for _ in reader.records(packaged):
                    pass
            reader.finish()
        except DeltaError:
            return False
        return True

    def _apply_beside(self, header: PackageHeader) -> str:
        try:
            apply_package(
                self.source,
                self._package,
                self._target,
                expected_target_hash=header.target_hash,
                max_target_bytes=_MAX_TARGET_BYTES,
            )
        except DeltaError as error:
            if self._target.exists():
                raise WrongError(f"a target after {error!r}") from error
            return type(error).__name__
        verify_tree(self._target, [packaged.file for packaged in header.files])
        shutil.rmtree(self._target)
        return "applied"

    def _apply_in_place(self, header: PackageHeader) -> str:
        if not self._tree.exists():
            shutil.copytree(self.source, self._tree)
            self._tree_before = list(_walk(str(self._tree)))
        try:
            apply_in_place(
                self._tree,
                self._package,
                self._journal,
                expected_target_hash=header.target_hash,
                max_target_bytes=_MAX_TARGET_BYTES,
            )
        except DeltaError as error:
            if list(_walk(str(self._tree))) != self._tree_before:
                raise WrongError(f"a changed tree after {error!r}") from error
            return type(error).__name__
        verify_tree(self._tree, [packaged.file for packaged in header.files])
        shutil.rmtree(self._tree)
        return "applied"

    def _seen(self) -> list[tuple[str, int, int, int]]:
        """Every path, but the package and the copy of the source, with what changes when its content does."""
        return list(_walk(str(self._top), skip=(str(self._package), str(self._tree))))


def _walk(folder: str, *, skip: tuple[str, ...] = ()) -> Iterator[tuple[str, int, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.path in skip:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield entry.path, 0, 0, 0
                yield from _walk(entry.path, skip=skip)
            else:
                status = entry.stat(follow_symlinks=False)
                yield entry.path, status.st_size, status.st_mtime_ns, status.st_ino


@contextlib.contextmanager
def sandbox(*, seed: int) -> Iterator[Sandbox]:
    """Yield a sandbox, in memory where there is such a folder."""
    where = _MEMORY_DISK if _MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="lamella-fuzz-", dir=where) as folder:
        yield Sandbox(Path(folder), seed=seed)


def run_cases(box: Sandbox, first: int, count: int, started: Any = None) -> Report:  # noqa: ANN401 - shared memory
    """Run cases one after the other; `started` is told which one began when."""
    report = Report()
    for case in range(first, first + count):
        before = time.perf_counter()
        if started is not None:
            started[0], started[1] = case, time.monotonic()
        try:
            outcome = box.run(case)
        except Exception:  # noqa: BLE001 - whatever it is, it is what this looks for
            outcome = "WRONG"
            report.failures.append((case, traceback.format_exc(limit=-4)))
        report.outcomes[outcome] += 1
        taken = time.perf_counter() - before
        if taken > report.slowest_s:
            report.slowest_s, report.slowest_case = taken, case
    report.cases = count
    return report


# --- processes


def _work(pipe: Connection, started: Any, seed: int, megabytes: int) -> None:  # noqa: ANN401 - shared memory
    """Run pieces as they come, in bounded memory."""
    with sandbox(seed=seed) as box:
        # A good package of each sort first: imports and tables do not count as a case's memory.
        run_cases(box, 0, 50)
        at_start = peak_memory_bytes()
        allowed = _virtual() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        while (piece := pipe.recv()) is not None:
            report = run_cases(box, *piece, started=started)
            report.peak_bytes = peak_memory_bytes() - at_start
            pipe.send(report)


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


class Worker:
    """One process, and the piece that it is at."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._context = multiprocessing.get_context("spawn")
        self.piece: tuple[int, int] | None = None
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._started = self._context.Array("d", [-1.0, time.monotonic() + 60], lock=False)
        arguments = (theirs, self._started, self._options.seed, self._options.megabytes)
        self._process = self._context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()

    def give(self, first: int, count: int) -> None:
        """Let it run these cases."""
        self.piece = (first, count)
        self._started[1] = time.monotonic() + 60
        self._pipe.send(self.piece)

    def take(self) -> Report | None:
        """Return the report of the piece when it is done; of one that ended a process, what is known."""
        if self._pipe.poll(0.02):
            with contextlib.suppress(EOFError):
                report: Report = self._pipe.recv()
                self.piece = None
                return report
        case, since = int(self._started[0]), time.monotonic() - self._started[1]
        is_dead = not self._process.is_alive()
        if not is_dead and since < self._options.seconds:
            return None
        why = f"the process ended with {self._process.exitcode}" if is_dead else f"no end after {since:.0f} s"
        self._process.kill()
        self._process.join()
        report = Report(cases=1, outcomes=Counter({"WRONG": 1}), failures=[(case, why)])
        first, count = self.piece or (case, 1)
        self._start()
        self.piece = None
        # What came before it is run again by this process: its counts went down with the worker.
        for start, length in ((first, case - first), (case + 1, first + count - case - 1)):
            if length > 0:
                self.give(start, length)
                while (part := self.take()) is None:
                    pass
                report.add(part)
        return report

    def stop(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(10)
        self._process.kill()


def fuzz(options: argparse.Namespace) -> Report:
    """Run all cases on several processes."""
    report = Report()
    end = options.first + options.mutations
    pieces = iter(range(options.first, end, _PIECE))
    workers = [Worker(options) for _ in range(options.workers)]
    try:
        while True:
            for worker in workers:
                if worker.piece is not None and (done := worker.take()):
                    report.add(done)
                if worker.piece is None and (first := next(pieces, None)) is not None:
                    worker.give(first, min(_PIECE, end - first))
            if all(worker.piece is None for worker in workers):
                return report
    finally:
        for worker in workers:
            worker.stop()


def main() -> int:
    """Run the cases and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20_000, help="cases to run")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to go on from")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=float, default=20.0, help="a case that takes longer counts as a hang")
    parser.add_argument("--megabytes", type=int, default=96, help="memory that a worker may take on top")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--case", type=int, help="run one case here, and let its exception through")
    parser.add_argument("--keep", type=Path, help="with --case: where to write its package")
    options = parser.parse_args()
    if options.case is not None:
        with sandbox(seed=options.seed) as box:
            if options.keep:
                options.keep.write_bytes(mutated(box.packages, options.case, seed=options.seed))
            print(box.run(options.case))
        return 0
    began = time.monotonic()
    report = fuzz(options)
    seconds = time.monotonic() - began
    is_over = report.peak_bytes > options.megabytes << 20
    if options.json:
        print(json.dumps({**vars(report), "seconds": seconds}, indent=2))
    else:
        print(f"{report.cases} cases in {seconds:.0f} s: {report.cases / seconds:.0f} a second")
        print(f"slowest {report.slowest_s:.3f} s (case {report.slowest_case}), peak {report.peak_bytes / 1e6:.1f} MB")
        for outcome, count in report.outcomes.most_common():
            print(f"{count:>9}  {outcome}")
        for case, why in report.failures[:20]:
            print(f"\ncase {case}: {why}")
    return 1 if report.failures or is_over else 0


if __name__ == "__main__":
    sys.exit(main())
