"""The facts by which a device is given a version: its own, and those that it shares with all others of its model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import bindparam, or_, select

from delta_updates import Outcome
from server.registry.asking import AskingTransactions
from server.registry.records import AskingDevice, DeviceCase, FollowedRollout
from server.registry.rollout_rows import channel_pointer, rollout_of
from server.registry.rollout_tables import RolloutRow
from server.registry.standing import Standing
from server.registry.tables import OfferRow, ReportRow, VersionRow
from server.rollouts import Release

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from server.registry.registry import Registry
    from server.rollouts import DeviceFacts

_REVERTED: Final = (
    select(OfferRow.version)
    .join(ReportRow, ReportRow.offer_id == OfferRow.offer_id)
    .where(
        OfferRow.device_id == bindparam("reverting"),
        OfferRow.model == bindparam("of_model"),
        OfferRow.version > bindparam("above"),
        ReportRow.outcome == Outcome.REVERTED,
    )
)


class CaseTransactions(AskingTransactions):
    """The registry's transactions on what decides about a device."""

    _standing: Standing | None = None

    def standing(self, token: str | None = None) -> Standing:
        """What all devices share under a token that was just read; None: read it now."""
        token = token or self.change_token()
        known = self._standing
        if known is None or known.token != token:
            known = self._standing = Standing(cast("Registry", self), token)
        return known

    def device_case(self, device_id: str, *, installed_version: int | None, is_full: bool = False) -> DeviceCase:
        """All that decides which version a device shall have, as it is now.

        Args:
            device_id: The device.
            installed_version: What it says it runs.
            is_full: With the rollouts of channels that it is not on, for an operator who wonders.

        Raises:
            NotFoundError: There is no such device.
        """
        asking = self.asking(device_id)
        if not is_full:
            return self.case_of(asking, installed_version=installed_version)
        facts = asking.facts(installed_version)
        return self._case(asking, facts, self.followed_rollouts(asking.device.model, facts.channels, is_full=True))

    def case_of(self, asking: AskingDevice, *, installed_version: int | None) -> DeviceCase:
        """All that decides which version a device that asks shall have; shared facts are those under its token."""
        facts = asking.facts(installed_version)
        followed = self.standing(asking.token).followed(asking.device.model, facts.channels)
        return self._case(asking, facts, followed)

    def _case(self, asking: AskingDevice, facts: DeviceFacts, followed: Collection[FollowedRollout]) -> DeviceCase:
        model, now = asking.device.model, self._now()
        numbers = {one.rollout.version for one in followed} | {facts.installed_version, facts.forced_version}
        known = frozenset(number for number in numbers if number)
        if max(known, default=0) > (facts.installed_version or 0):
            facts = replace(facts, reverted=self._reverted(model, facts))
        return DeviceCase(
            facts=facts,
            releases=self.standing(asking.token).releases(model, known),
            rollouts=tuple(one.rollout for one in followed),
            due=tuple(one.rollout.rollout_id for one in followed if one.is_due(now)),
            now=now,
        )

    def followed_rollouts(
        self, model: str, channels: frozenset[str], *, is_full: bool = False
    ) -> tuple[FollowedRollout, ...]:
        """What the channels point at, and all rollouts of newer versions on them; ``is_full``: on any channel."""
        with self._read() as session:
            pointers = [
                pointer
                for channel in sorted(channels)
                if (pointer := channel_pointer(session, model, channel)) is not None and pointer.version is not None
            ]
            newest = max((pointer.version or 0 for pointer in pointers), default=0)
            pointed_at = [pointer.rollout_id for pointer in pointers if pointer.version == newest]
            query = select(RolloutRow).where(
                RolloutRow.model == model, or_(RolloutRow.version > newest, RolloutRow.rollout_id.in_(pointed_at))
            )
            if not is_full:
                query = query.where(RolloutRow.channel.in_(sorted(channels)))
            return tuple(
                FollowedRollout(rollout=rollout_of(row), evaluated_at=row.evaluated_at)
                for row in session.scalars(query)
            )

    def releases(self, model: str, numbers: Collection[int]) -> Mapping[int, Release]:
        """Those of some versions that are, or were, released."""
        query = select(VersionRow.number, VersionRow.state, VersionRow.reason).where(
            VersionRow.model == model,
            VersionRow.number.in_(sorted(numbers)),
            VersionRow.state.in_(("released", "withdrawn")),
        )
        with self._read() as session:
            return {
                number: Release(number=number, state=cast("Any", state), reason=reason)
                for number, state, reason in session.execute(query)
            }

    def _reverted(self, model: str, facts: DeviceFacts) -> frozenset[int]:
        """Versions above what a device has that failed their self-test on it."""
        rows = self._glance(_REVERTED, reverting=facts.device_id, of_model=model, above=facts.installed_version or 0)
        return frozenset(row.version for row in rows)
