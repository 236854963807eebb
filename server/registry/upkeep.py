"""What upkeep asks of the registry: which artifacts its rows name, and which packages can go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from server.registry.ddi_tables import ImageRow
from server.registry.rollout_rows import offered_versions
from server.registry.rollout_tables import DevicePolicyRow
from server.registry.statement_tables import StatementRow
from server.registry.tables import DeviceRow, OfferRow, PackageRow, RoundRow, VersionFileRow, VersionRow
from server.registry.transactions import Transactions
from server.registry.versions import package_record
from server.retention import Field, dispensable

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from server.registry.records import PackageRecord


@dataclass(frozen=True, kw_only=True)
class NamedArtifact:
    """An artifact that a row names.

    Attributes:
        digest: Its sha256.
        length: Bytes, where the row knows it.
        named_by: Which row, in words.
        is_needed: Whether it must be there; a candidate's manifest is stored only while it is published.
    """

    digest: str
    length: int | None
    named_by: str
    is_needed: bool = True


class UpkeepTransactions(Transactions):
    """The registry's transactions for upkeep."""

    def named_artifacts(self) -> tuple[NamedArtifact, ...]:
        """Every artifact that a row names, once for each row."""
        with self._read() as session:
            return (
                *_of_files(session),
                *_of_versions(session),
                *_of_statements(session),
                *_of_packages(session),
                *_of_rounds(session),
                *_of_images(session),
            )

    def collect_packages(
        self, model: str, *, keep_versions: int, signed: frozenset[int], dry_run: bool = False
    ) -> tuple[PackageRecord, ...]:
        """Stop offering the packages that no device needs any more; returns them.

        Decided and written in one transaction. Their rows stay, because past offers refer to them.

        Args:
            model: The model.
            keep_versions: See `server.retention.dispensable`.
            signed: Versions whose manifests are signed.
            dry_run: Only say which these are.
        """
        with self._read() if dry_run else self._write() as session:
            rows = session.scalars(
                select(PackageRow).where(PackageRow.model == model, PackageRow.collected_at.is_(None))
            )
            by_path = {row.path: row for row in rows}
            gone = dispensable(
                tuple(package_record(row) for row in by_path.values()),
                field=_field(session, model, signed),
                keep_versions=keep_versions,
            )
            if not dry_run:
                for package in gone:
                    by_path[package.path].collected_at = self._now()
            return gone

    def collected_paths(self) -> frozenset[str]:
        """The paths of all packages that were collected."""
        with self._read() as session:
            return frozenset(session.scalars(select(PackageRow.path).where(PackageRow.collected_at.is_not(None))))


def _field(session: Session, model: str, signed: frozenset[int]) -> Field:
    enrolled = (DeviceRow.model == model) & DeviceRow.revoked_at.is_(None)
    released = select(VersionRow.number).where(VersionRow.model == model, VersionRow.state == "released")
    installed = select(DeviceRow.installed_version).where(enrolled, DeviceRow.installed_version.is_not(None)).distinct()
    wanted = (
        select(OfferRow.version)
        .join(DeviceRow, DeviceRow.device_id == OfferRow.device_id)
        .where(enrolled, OfferRow.model == model, OfferRow.is_open)
        .distinct()
    )
    return Field(
        released=frozenset(session.scalars(released)),
        installed=frozenset(number for number in session.scalars(installed) if number is not None),
        wanted=frozenset(session.scalars(wanted)) | offered_versions(session, model) | _forced(session, model),
        signed=signed,
    )


def _forced(session: Session, model: str) -> frozenset[int]:
    forced = (
        select(DevicePolicyRow.forced_version)
        .join(DeviceRow, DeviceRow.device_id == DevicePolicyRow.device_id)
        .where(DeviceRow.model == model, DevicePolicyRow.forced_version.is_not(None))
    )
    return frozenset(number for number in session.scalars(forced) if number is not None)


def _of_files(session: Session) -> list[NamedArtifact]:
    rows = session.execute(
        select(
            VersionFileRow.sha256,
            VersionFileRow.length,
            VersionFileRow.model,
            VersionFileRow.version,
            VersionFileRow.path,
        )
    )
    return [
        NamedArtifact(digest=digest, length=length, named_by=f"{path} of {model} v{number}")
        for digest, length, model, number, path in rows
    ]


def _of_versions(session: Session) -> list[NamedArtifact]:
    named = []
    for row in session.scalars(select(VersionRow)):
        if row.master_sha256 is not None:
            named.append(
                NamedArtifact(
                    digest=row.master_sha256, length=None, named_by=f"the master of {row.model} v{row.number}"
                )
            )
        named.append(
            NamedArtifact(
                digest=row.manifest_sha256,
                length=row.manifest_length,
                named_by=f"manifests/{row.model}/{row.number}.json",
                is_needed=row.state == "released",
            )
        )
    return named


def _of_statements(session: Session) -> list[NamedArtifact]:
    return [
        NamedArtifact(digest=digest, length=length, named_by=f"the privacy {what} of {row.model} v{row.version}")
        for row in session.scalars(select(StatementRow))
        for what, digest, length in (
            ("statement", row.sha256, row.length),
            ("report", row.report_sha256, None),
            ("ledger", row.ledger_sha256, None),
        )
    ]


def _of_packages(session: Session) -> list[NamedArtifact]:
    return [
        NamedArtifact(digest=row.sha256, length=row.length, named_by=row.path)
        for row in session.scalars(select(PackageRow).where(PackageRow.collected_at.is_(None)))
    ]


def _of_rounds(session: Session) -> list[NamedArtifact]:
    rows = session.execute(select(RoundRow.run_id, RoundRow.server_round, RoundRow.artifacts))
    return [
        NamedArtifact(digest=digest, length=None, named_by=f"{name} of round {server_round} of {run_id}")
        for run_id, server_round, artifacts in rows
        for name, digest in artifacts.items()
    ]


def _of_images(session: Session) -> list[NamedArtifact]:
    # One that is missing is made again when a client asks for it.
    return [
        NamedArtifact(digest=digest, length=None, named_by="a .swu image", is_needed=False)
        for digest in session.scalars(select(ImageRow.sha256))
    ]
