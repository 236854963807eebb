"""A short run of the fuzzer (`benchmarks/fuzz.py`), and that it notices what it looks for."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delta_updates import package
from delta_updates.codecs import patch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
# Cases that ended in something else than an error of ours, before that was mended.
FOUND: tuple[int, ...] = ()


@pytest.fixture(scope="module")
def fuzz() -> Iterator[dict[str, Any]]:
    sys.path.insert(0, str(BENCHMARKS))
    yield runpy.run_path(str(BENCHMARKS / "fuzz.py"))
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
def test_mutated_packages_never_do_harm(fuzz: dict[str, Any]) -> None:
    with fuzz["sandbox"](seed=0) as box:
        report = fuzz["run_cases"](box, 0, 1600)
    assert report.failures == []
    assert report.slowest_s < 5
    # They get past every hash but the last, and some are harmless.
    for way in ("beside", "in place"):
        assert report.outcomes[f"{way}: applied"] > 30
        assert report.outcomes[f"{way}: IntegrityError"] > 50
        assert report.outcomes[f"{way}: PackageFormatError"] > 200


@pytest.mark.slow
def test_a_reader_that_forgets_a_check_is_noticed(fuzz: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_check_parts", lambda *_: None)
    with fuzz["sandbox"](seed=0) as box:
        assert fuzz["run_cases"](box, 0, 600).failures


@pytest.mark.slow
def test_an_exception_of_another_kind_is_noticed(fuzz: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> bytes:
        raise IndexError("made up")

    monkeypatch.setattr(patch.Patch, "decode", crash)
    with fuzz["sandbox"](seed=0) as box:
        failures = fuzz["run_cases"](box, 0, 400).failures
    assert any("made up" in why for _, why in failures)


def test_a_case_comes_out_the_same_again(fuzz: dict[str, Any]) -> None:
    mutated = fuzz["mutated"]
    with fuzz["sandbox"](seed=0) as one, fuzz["sandbox"](seed=0) as other:
        assert one.packages == other.packages
        for case in range(100):
            assert mutated(one.packages, case, seed=3) == mutated(other.packages, case, seed=3)
        assert mutated(one.packages, 1, seed=3) != mutated(one.packages, 1, seed=4)
