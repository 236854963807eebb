"""Fill the tables of docs/settings.md, docs/federated.md and docs/privacy.md from the classes that define them.

Run it as `python docs/make_tables.py`.

A table stands between `<!-- table: NAME, written by docs/make_tables.py -->` and `<!-- end -->`.
"""
# ruff: noqa: INP001 - a script, not a package

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from privacy import LEAVES_THE_DEVICE
from server.config import Settings
from server.federation.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER: Final = Path(__file__).parent
TABLES: Final = {"settings": "settings.md", "recipe": "federated.md", "contribution": "privacy.md"}
_MARKED: Final = re.compile(r"(<!-- table: (\w+),[^>]*-->\n).*?(<!-- end -->)", flags=re.DOTALL)


def filled(text: str) -> str:
    """A page with every marked table made anew."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{table(found[2])}\n{found[3]}", text)


def table(name: str) -> str:
    """One table by its name in `TABLES`."""
    return {"settings": _settings, "recipe": _recipe, "contribution": _contribution}[name]()


def _settings() -> str:
    rows = (
        # A default that is computed from others is told by the description.
        (
            f"`LAMELLA_{name.upper()}`",
            "" if field.default_factory or field.default is None else f"`{field.default}`",
            field.description,
        )
        for name, field in Settings.model_fields.items()
    )
    return _rows("variable", "default", "meaning", rows=rows)


def _recipe() -> str:
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    defaults = project["tool"]["flwr"]["app"]["config"]
    names = {name: name.replace("_", "-") for name in Recipe.model_fields}
    rows = (
        (f"`{names[name]}`", str(defaults[names[name]]) or "(empty)", field.description)
        for name, field in Recipe.model_fields.items()
    )
    return _rows("key", "default", "meaning", rows=rows)


def _contribution() -> str:
    return _rows("field", "why it leaves", rows=((f"`{name}`", why) for name, why in LEAVES_THE_DEVICE))


def _rows(*columns: str, rows: Iterable[tuple[str | None, ...]]) -> str:
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return head + "".join(f"| {' | '.join((cell or '').replace('<', '&lt;') for cell in row)} |\n" for row in rows)


if __name__ == "__main__":
    for page in TABLES.values():
        path = FOLDER / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
