"""Where a foreign folder of weights says that they were made from a base of ours: written by one export, read again."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from delta_updates import DeltaError, base_hash, scan_tree
from server.files import write_durably

if TYPE_CHECKING:
    from pathlib import Path

_KEY: Final = "lamella_made_from"
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_MAX_CONFIG_BYTES: Final = 1024 * 1024


def base_hash_of(source: Path) -> str | None:
    """The hash of the base in a version's tree or a checkpoint folder, or what a marked folder says; None: a file."""
    if not source.is_dir():
        return None
    if (marked := origin_in(source)) is not None:
        return marked
    try:
        files = scan_tree(source)
    except DeltaError:
        return None
    if any(file.path.startswith("base/") for file in files):
        return base_hash(files)
    return base_hash([file.model_copy(update={"path": f"base/{file.path}"}) for file in files])


def mark_origin(folder: Path, made_from: str) -> None:
    """Write into a Hugging Face folder's config.json which base it was made from; other programs pass it over."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_durably(folder / "config.json", (json.dumps(config | {_KEY: made_from}, indent=2) + "\n").encode())


def origin_in(folder: Path) -> str | None:
    """The hash that `mark_origin` wrote; None: there is none, or nothing that could be one."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # the import itself says what is wrong with it
    found = config.get(_KEY) if isinstance(config, dict) else None
    return found if isinstance(found, str) and _HASH.fullmatch(found) else None
