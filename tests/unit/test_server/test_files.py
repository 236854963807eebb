import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from server.errors import ConfigurationError, StorageError
from server.files import locked, operator_token, secret_file, write_durably


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"a long first content")
    write_durably(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder"):
        write_durably(tmp_path / "folder", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    first = operator_token(tmp_path / "home")
    assert operator_token(tmp_path / "home") == first
    assert len(first) >= 43
    assert (tmp_path / "home" / "operator.token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    operator_token(tmp_path)
    (tmp_path / "operator.token").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        operator_token(tmp_path)


def test_an_empty_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "operator.token").touch(mode=0o600)
    with pytest.raises(ConfigurationError, match="0 bytes"):
        operator_token(tmp_path)


def test_a_missing_secret_is_not_made_when_nobody_says_how(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"key\.pem"):
        secret_file(tmp_path / "key.pem")


def _read_token(home: str, start: "multiprocessing.synchronize.Barrier", answers: "multiprocessing.Queue[str]") -> None:
    start.wait()
    answers.put(operator_token(Path(home)))


def test_processes_that_start_at_once_get_the_same_secret(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_read_token, args=(str(tmp_path), start, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    tokens = {answers.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(tokens) == 1


def test_a_lock_holds_threads_apart(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                os.sched_yield()
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
