"""A simulated fleet on disk: one base tree, and one person's text per device."""

from __future__ import annotations

import json
import os
import shutil
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from model import export_users, open_source, training_part
from server.errors import FederationError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from model import Example


def make_fleet(folder: Path, *, tree: Path, data: str, devices: int) -> tuple[str, ...]:
    """Write a simulated fleet to `folder` and return its users, in device order.

    Layout: `tree/` (the base, hard-linked), `data/USER.jsonl`, `devices/N/` (each device's ledger, made while training)
    and `fleet.json`. Ledgers of an earlier fleet with the same users are kept: a person's budget outlives a run.

    Args:
        folder: Where to write; made when missing.
        tree: The base version's tree.
        data: A source of `model.open_source`.
        devices: How many devices.

    Raises:
        FederationError: The source has fewer users, or the folder holds another fleet.
    """
    source = open_source(data)
    users = source.users()[:devices]
    if len(users) < devices:
        raise FederationError(f"The source {data!r} has {len(users)} users with enough text; {devices} were asked for.")
    record = {"users": list(users), "data": data}
    marker = folder / "fleet.json"
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != record:
        raise FederationError(f"{folder} holds another fleet, with its people's ledgers. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    export_users(source, folder / "data", users=devices, held_out_users=0)
    _link_tree(tree, folder / "tree")
    temporary = marker.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(marker)
    return users


def users_of(folder: Path) -> tuple[str, ...]:
    """The people of a simulated fleet, in device order; none when the folder is gone."""
    try:
        return tuple(json.loads((folder / "fleet.json").read_text(encoding="utf-8"))["users"])
    except FileNotFoundError:
        return ()


def training_examples_of(
    folder: Path, device_ids: Collection[str], *, max_examples: int, limit: int
) -> tuple[Example, ...]:
    """Up to `limit` examples that simulated devices trained on, in turn over the devices; for audits.

    Args:
        folder: The fleet.
        device_ids: Pseudonyms from the privacy events.
        max_examples: The cap that the devices were given.
        limit: Most examples in all.
    """
    users = users_of(folder)
    source = open_source(f"jsonl:{folder / 'data'}")
    parts = []
    for number, user in enumerate(users):
        pseudonym = folder / "devices" / str(number) / "training_id"
        if pseudonym.exists() and pseudonym.read_text(encoding="ascii").strip() in device_ids:
            parts.append(training_part(source.examples(user), max_examples=max_examples))
    in_turn = (example for turn in zip_longest(*parts) for example in turn if example is not None)
    return tuple(islice(in_turn, limit))


def _link_tree(source: Path, target: Path) -> None:
    """Hard-link a tree; copies where links are not possible (another file system)."""

    def link(src: str, dst: str) -> None:
        try:
            os.link(src, dst)
        except OSError:
            shutil.copyfile(src, dst)

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=link)
