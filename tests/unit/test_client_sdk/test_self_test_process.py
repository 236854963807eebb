"""The self-test in a real process of its own: what is tested may crash, hang or take memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from simulators.models import write_base_version
from simulators.versions import manifest_of

from client_sdk import self_test_process
from client_sdk.device_config import SelfTestLimits
from client_sdk.errors import ConfigurationError, DeviceDiskError, SelfTestError
from client_sdk.self_test_process import Task, run_task


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_version(tmp_path_factory.mktemp("models") / "v1")


def task(tree: Path, **limits: float) -> Task:
    return Task(
        tree=tree,
        manifest=manifest_of(tree, version=1),
        limits=SelfTestLimits.model_validate(limits),
        serving=None,
        probe=None,
    )


def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Let a script stand in for the interpreter that is started."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\nsys.stdin.readline()\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(self_test_process.sys, "executable", str(script))


def test_a_good_version_is_measured_in_another_process(base: Path) -> None:
    facts = run_task(task(base))
    assert facts.seconds > 0
    assert facts.tokens_per_second > 0
    assert facts.peak_memory_bytes is not None
    assert 50e6 < facts.peak_memory_bytes < 4e9
    with pytest.raises(SelfTestError, match="MB of memory; this device allows 1 MB"):
        run_task(task(base, max_memory_bytes=1_000_000))


def test_what_the_test_finds_comes_back_as_what_it_is(base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "base").mkdir(parents=True)
    for path in (base / "base").iterdir():
        (broken / "base" / path.name).write_bytes(path.read_bytes())
    (broken / "base" / "config.json").write_text("{}")
    with pytest.raises(SelfTestError, match="v1 does not run"):
        run_task(task(broken))


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
        ("sys.exit(3)", "ended with status 3"),
        ("print('hello')", "answered nonsense"),
        ("print('{}{}')", "answered nonsense"),
        ("""print('{"error": "SystemExit", "message": "x"}')""", "answered nonsense"),
        ("""print('{"error": "SelfTestError", "message": "worse"}')""", "worse"),
        ("print('x' * 10**6)", "answered nonsense"),
    ],
)
def test_a_crash_or_nonsense_is_a_failed_test(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, word: str
) -> None:
    fake(monkeypatch, tmp_path, code)
    with pytest.raises(SelfTestError, match=word):
        run_task(task(base))


@pytest.mark.parametrize("error", [DeviceDiskError, ConfigurationError])
def test_what_is_not_the_versions_fault_is_not_held_against_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    fake(monkeypatch, tmp_path, f"""print('{{"error": "{error.__name__}", "message": "elsewhere"}}')""")
    with pytest.raises(error, match="elsewhere"):
        run_task(task(base))


def test_a_version_that_hangs_is_given_up(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, tmp_path, "time.sleep(600)")
    with pytest.raises(SelfTestError, match=r"not done with its self-test after 0\.5 s"):
        run_task(task(base, max_seconds=0.5))


def test_the_process_ends_with_its_parent(base: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "client_sdk.self_test_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdin is not None
    hanging = task(base).model_copy(update={"tree": base, "probe": None})
    process.stdin.write(hanging.model_dump_json().encode() + b"\n")
    process.stdin.close()
    started = time.monotonic()
    code = process.wait(timeout=120)
    assert code in {0, 1, -signal.SIGPIPE}
    assert time.monotonic() - started < 100
