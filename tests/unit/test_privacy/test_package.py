"""The door of the package: exact, documented and light."""

from __future__ import annotations

import subprocess
import sys

import privacy
import privacy.audits
import privacy.report
from privacy import errors


def test_all_is_exact() -> None:
    for package in (privacy, privacy.audits, privacy.report):
        assert len(set(package.__all__)) == len(package.__all__)
        for name in package.__all__:
            assert getattr(package, name) is not None
    tree = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert tree <= set(privacy.__all__)


def test_every_error_has_the_one_root() -> None:
    for name, value in vars(errors).items():
        if isinstance(value, type):
            assert issubclass(value, errors.PrivacyError), name


def test_importing_stays_light() -> None:
    heavy = ["torch", "opacus", "dp_accounting", "matplotlib", "scipy", "flwr"]
    code = f"import privacy, sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_recomputing_needs_neither_torch_nor_matplotlib() -> None:
    heavy = ["torch", "opacus", "matplotlib", "flwr"]
    code = f"import privacy.__main__, sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
