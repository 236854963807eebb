"""Versions and packages: numbers given out once, contents fixed, one way from candidate to released or rejected."""

from __future__ import annotations

import hashlib
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from sqlalchemy import case, func, select, update

from delta_updates.manifest import VersionManifest
from privacy.utility import GroupChange
from server.errors import ConflictError, InvalidRecordError, NotFoundError
from server.registry.gate_result import GateResult
from server.registry.records import PackageRecord, TargetRecord, VersionRecord
from server.registry.rollout_rows import channels_of, launch_rollout
from server.registry.statements import statement_target
from server.registry.tables import DeviceRow, ModelRow, PackageRow, VersionFileRow, VersionRow
from server.registry.transactions import Transactions, ensure_model, lock_model
from server.rollouts import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from server.registry.records import VersionState
    from server.rollouts import Launch

_MANIFEST_PATH = re.compile(r"manifests/([a-z0-9][a-z0-9._-]{0,63})/([1-9][0-9]{0,8})(\.privacy)?\.json")


class VersionTransactions(Transactions):
    """The registry's transactions on versions and packages."""

    def models(self) -> tuple[str, ...]:
        """The names of all models, sorted."""
        with self._read() as session:
            return tuple(session.scalars(select(ModelRow.name).order_by(ModelRow.name)))

    def add_candidate(
        self, manifest: VersionManifest, *, run_id: str | None = None, master_sha256: str | None = None, above: int = 0
    ) -> VersionRecord:
        """Add a version under the model's next number, which replaces ``manifest.version`` and lies above ``above``.

        Args:
            manifest: What it holds.
            run_id: The run that it comes from.
            master_sha256: The unrounded adapter that it was made from, in the artifact store.
            above: A number that is taken already, as by a thief of keys.

        Raises:
            NotFoundError: The parent does not exist.
            InvalidRecordError: An adapter without a parent, or on another base than its parent's.
        """
        with self._write() as session:
            ensure_model(session, manifest.model)
            _check_lineage(session, manifest)
            number = session.scalar(
                update(ModelRow)
                .where(ModelRow.name == manifest.model)
                .values(last_version=case((ModelRow.last_version < above, above), else_=ModelRow.last_version) + 1)
                .returning(ModelRow.last_version)
                .execution_options(synchronize_session=False)
            )
            final = manifest.model_copy(update={"version": number})
            row = _new_row(final, run_id=run_id, master_sha256=master_sha256, created_at=self._now())
            session.add(row)
            session.flush()
            session.add_all(
                VersionFileRow(
                    model=final.model, version=final.version, path=file.path, length=file.length, sha256=file.sha256
                )
                for file in final.files
            )
            return _version(row)

    def versions(self, model: str, *, after: int = 0, limit: int | None = None) -> tuple[VersionRecord, ...]:
        """All versions of a model, oldest first; ``after`` is the last number of a page."""
        query = (
            select(VersionRow)
            .where(VersionRow.model == model, VersionRow.number > after)
            .order_by(VersionRow.number)
            .limit(limit)
        )
        with self._read() as session:
            return tuple(_version(row) for row in session.scalars(query))

    def version(self, model: str, number: int) -> VersionRecord:
        """One version.

        Raises:
            NotFoundError: The model has no such version.
        """
        with self._read() as session:
            return _version(_row(session, model, number))

    def latest_released(self, model: str) -> VersionRecord | None:
        """The released version with the highest number."""
        with self._read() as session:
            row = session.scalar(_latest_released(model))
            return None if row is None else _version(row)

    def versions_in_the_field(self, model: str) -> tuple[int, ...]:
        """Versions that were released and that devices run or get before the next one; ascending.

        Those are what enrolled devices last reported, withdrawn ones too, what the channels point at, and the latest.
        """
        reported = (
            select(VersionRow.number)
            .join(
                DeviceRow,
                (DeviceRow.model == VersionRow.model) & (DeviceRow.installed_version == VersionRow.number),
            )
            .where(
                VersionRow.model == model,
                VersionRow.state.in_(("released", "withdrawn")),
                DeviceRow.revoked_at.is_(None),
            )
            .distinct()
        )
        with self._read() as session:
            numbers = set(session.scalars(reported)) | {
                version for version in channels_of(session, model).values() if version
            }
            latest = session.scalar(_latest_released(model))
            return tuple(sorted(numbers | ({latest.number} if latest else set())))

    def record_gate(self, model: str, number: int, gate: GateResult) -> None:
        """Keep what the evaluation gate measured for a candidate."""
        with self._write() as session:
            row = _row(session, model, number, lock=True)
            _require_state(row, "candidate", "be measured")
            # SQLite has no NaN: a loss that is not finite is kept as unknown, the refusal's reason has it in words.
            row.candidate_loss, row.parent_loss = _finite(gate.candidate_loss), _finite(gate.parent_loss)
            row.gate_margin, row.is_gate_passed = gate.margin, gate.is_passed
            row.gate_worst_group_margin = gate.worst_group_margin
            row.gate_groups = [group.model_dump(mode="json") for group in gate.groups] or None

    def add_packages(self, model: str, number: int, packages: Sequence[PackageRecord]) -> None:
        """Record the packages of a candidate; repeating it with the same packages changes nothing.

        Raises:
            ConflictError: The version is no candidate any more, or a path is recorded with other bytes.
        """
        with self._write() as session:
            _require_state(_row(session, model, number, lock=True), "candidate", "get packages")
            for package in packages:
                known = session.get(PackageRow, package.path)
                if known is None:
                    session.add(_package_row(package))
                elif (known.sha256, known.length) != (package.sha256, package.length):
                    raise ConflictError(f"{package.path} is recorded with other bytes ({known.sha256}).")

    def packages(self, model: str, number: int) -> tuple[PackageRecord, ...]:
        """The packages of a version, the full one first, then by source version."""
        with self._read() as session:
            rows = session.scalars(
                select(PackageRow).where(
                    PackageRow.model == model, PackageRow.version == number, PackageRow.collected_at.is_(None)
                )
            )
            return tuple(sorted((package_record(row) for row in rows), key=lambda package: package.source_version or 0))

    def deltas(self, model: str) -> tuple[PackageRecord, ...]:
        """Every delta between released versions of a model, by target and source version."""
        released = select(VersionRow.number).where(VersionRow.model == model, VersionRow.state == "released")
        wanted = select(PackageRow).where(
            PackageRow.model == model,
            PackageRow.source_version.is_not(None),
            PackageRow.version.in_(released),
            PackageRow.collected_at.is_(None),
        )
        with self._read() as session:
            rows = session.scalars(wanted.order_by(PackageRow.version, PackageRow.source_version))
            return tuple(package_record(row) for row in rows)

    def mark_released(self, model: str, number: int, *, launch: Launch = AT_ONCE) -> VersionRecord:
        """Let devices be offered a version, by a rollout; its packages must be recorded and signed before.

        Args:
            model: The model.
            number: Its candidate; releasing what is released changes nothing.
            launch: The rollout that is made with it.

        Raises:
            ConflictError: Rejected, without a full package, not measured, or older than the latest release.
        """
        with self._write() as session:
            # Releases of one model take turns: each sees the one before it.
            lock_model(session, model)
            row = _row(session, model, number, lock=True)
            if row.state != "released":
                _require_state(row, "candidate", "be released")
                _require_releasable(session, row)
                row.state, row.released_at = "released", self._now()
                session.flush()
                launch_rollout(session, model=model, version=number, launch=launch, now=self._now())
            return _version(row)

    def reject(self, model: str, number: int, reason: str) -> None:
        """Rule a candidate out for good; the first reason is kept.

        Raises:
            ConflictError: It is released.
        """
        with self._write() as session:
            row = _row(session, model, number, lock=True)
            if row.state != "rejected":
                _require_state(row, "candidate", "be rejected")
                row.state, row.reason = "rejected", reason

    def target(self, path: str) -> TargetRecord | None:
        """The released manifest, privacy statement or package under a signed path."""
        with self._read() as session:
            if match := _MANIFEST_PATH.fullmatch(path):
                version = session.get(VersionRow, (match[1], int(match[2])))
                if version is None or version.state != "released":
                    return None
                if match[3]:
                    return statement_target(session, version.model, version.number)
                return TargetRecord(path=path, length=version.manifest_length, sha256=version.manifest_sha256)
            package = session.scalar(
                select(PackageRow)
                .join(VersionRow, (VersionRow.model == PackageRow.model) & (VersionRow.number == PackageRow.version))
                .where(PackageRow.path == path, PackageRow.collected_at.is_(None), VersionRow.state == "released")
            )
            if package is None:
                return None
            return TargetRecord(path=path, length=package.length, sha256=package.sha256)


def _new_row(
    manifest: VersionManifest, *, run_id: str | None, master_sha256: str | None, created_at: datetime
) -> VersionRow:
    raw = manifest.to_bytes()
    return VersionRow(
        model=manifest.model,
        number=manifest.version,
        kind=manifest.kind,
        state="candidate",
        reason="",
        tree_hash=manifest.tree_hash,
        base_hash=manifest.base_hash,
        manifest=raw.decode(),
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
        manifest_length=len(raw),
        run_id=run_id,
        master_sha256=master_sha256,
        created_at=created_at,
    )


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _latest_released(model: str) -> Select[VersionRow]:
    return (
        select(VersionRow)
        .where(VersionRow.model == model, VersionRow.state == "released")
        .order_by(VersionRow.number.desc())
        .limit(1)
    )


def _row(session: Session, model: str, number: int, *, lock: bool = False) -> VersionRow:
    """One version's row; ``lock`` makes other writers of it wait (PostgreSQL: SQLite has one writer anyway)."""
    row = session.get(VersionRow, (model, number), with_for_update=lock)
    if row is None:
        raise NotFoundError(f"There is no v{number} of {model!r}. `lamella versions` lists what there is.")
    return row


def _require_state(row: VersionRow, state: VersionState, verb: str) -> None:
    if row.state != state:
        reason = f" ({row.reason})" if row.reason else ""
        raise ConflictError(f"v{row.number} of {row.model!r} is {row.state}{reason}: only a {state} can {verb}.")


def _check_lineage(session: Session, manifest: VersionManifest) -> None:
    if manifest.parent is None:
        if manifest.kind == "adapter":
            raise InvalidRecordError("An adapter version needs a parent: the version it was trained from.")
        return
    parent = _row(session, manifest.model, manifest.parent)
    if manifest.kind == "adapter" and parent.base_hash != manifest.base_hash:
        raise InvalidRecordError(
            f"The adapter stands on base {manifest.base_hash}, its parent v{parent.number} on {parent.base_hash}."
        )


def _require_releasable(session: Session, row: VersionRow) -> None:
    # Also a withdrawn one: devices have it.
    latest = session.scalar(
        select(func.max(VersionRow.number)).where(
            VersionRow.model == row.model, VersionRow.state.in_(("released", "withdrawn"))
        )
    )
    if latest is not None and latest > row.number:
        raise ConflictError(
            f"v{latest} of {row.model!r} is released already and versions never go down: "
            f"v{row.number} can no longer be released. Make a new candidate."
        )
    if row.kind == "adapter" and not row.is_gate_passed:
        raise ConflictError(f"v{row.number} of {row.model!r} has not passed the evaluation gate.")
    full = select(PackageRow.path).where(
        PackageRow.model == row.model, PackageRow.version == row.number, PackageRow.source_version.is_(None)
    )
    if session.scalar(full) is None:
        raise ConflictError(f"v{row.number} of {row.model!r} has no full package yet. Publish it.")


@lru_cache(maxsize=64)
def _manifest(text: str) -> VersionManifest:
    # A version never changes, and every offer needs it.
    return VersionManifest.from_bytes(text.encode())


def _version(row: VersionRow) -> VersionRecord:
    gate = None
    if row.candidate_loss is not None and row.parent_loss is not None and row.gate_margin is not None:
        gate = GateResult(
            candidate_loss=row.candidate_loss,
            parent_loss=row.parent_loss,
            margin=row.gate_margin,
            groups=tuple(GroupChange.model_validate(group) for group in row.gate_groups or ()),
            worst_group_margin=row.gate_worst_group_margin,
        )
    return VersionRecord(
        model=row.model,
        number=row.number,
        manifest=_manifest(row.manifest),
        state=cast("VersionState", row.state),
        reason=row.reason,
        gate=gate,
        run_id=row.run_id,
        master_sha256=row.master_sha256,
        created_at=row.created_at,
        released_at=row.released_at,
    )


def _package_row(package: PackageRecord) -> PackageRow:
    return PackageRow(
        path=package.path,
        model=package.model,
        version=package.version,
        source_version=package.source_version,
        length=package.length,
        sha256=package.sha256,
        format=package.format,
        facts=dict(package.facts),
    )


def package_record(row: PackageRow) -> PackageRecord:
    """A row as a frozen record."""
    return PackageRecord(
        model=row.model,
        version=row.version,
        source_version=row.source_version,
        path=row.path,
        length=row.length,
        sha256=row.sha256,
        format=row.format,
        facts=row.facts,
    )
