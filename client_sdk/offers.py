"""Ask for an update, and verify all of the answer that can be verified without its packages."""

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

from client_sdk import trust
from client_sdk.errors import RefusedError
from client_sdk.key_ring import KeyRing
from client_sdk.metadata import SignedCatalogue
from client_sdk.release_privacy import require_private
from client_sdk.reports import Reporter
from client_sdk.service import UpdateService
from client_sdk.slots import SlotStore
from client_sdk.state import DeviceState, StateFile
from client_sdk.transport import Transport
from delta_updates import Offer, UpdateQuery, VersionManifest

_logger = logging.getLogger(__name__)


class VerifiedOffer(NamedTuple):
    """An offer that `trust` accepted, with its signed manifest, and the steps of its chain likewise."""

    offer: Offer
    manifest: VersionManifest
    chain: tuple["VerifiedOffer", ...] = ()


class OfferFinder:
    """Holds what the service offers against what this device remembers and what is signed."""

    def __init__(  # noqa: PLR0913 - the parts that it asks, each by its name
        self,
        *,
        states: StateFile,
        slots: SlotStore,
        service: UpdateService,
        transport: Transport,
        ring: KeyRing,
        catalogue: SignedCatalogue,
        reporter: Reporter,
        free_bytes: Callable[[], int],
        max_epsilon: float | None = None,
    ) -> None:
        self._states = states
        self._slots = slots
        self._service = service
        self._transport = transport
        self._ring = ring
        self._catalogue = catalogue
        self._reporter = reporter
        self._free_bytes = free_bytes
        self._max_epsilon = max_epsilon

    def find(self, *, only_full: bool = False, is_damaged: bool = False) -> VerifiedOffer | None:
        """Ask the service for an offer; None when there is nothing newer for this device.

        Args:
            only_full: take no deltas, after they did not work.
            is_damaged: what is installed is not whole: ask as an empty device, and take the same version as well.

        Raises:
            RefusedError: the offer or what is signed does not hold; the service is told once.
            ServiceUnavailableError, EnrolmentError, DeviceDiskError: see `errors.py`.
        """
        state = self._states.load()
        installed = self._installed(state)
        if is_damaged:
            installed = dataclasses.replace(installed, version=None, tree_hash=None)
        query = UpdateQuery(
            model=state.model,
            installed_version=installed.version,
            installed_hash=installed.tree_hash,
            only_full=only_full,
        )
        offer = self._service.ask(query, free_bytes=self._free_bytes())
        self._ring.renew_if_known(self._transport, protocol=self._service.protocol)
        if offer is None or trust.is_installed(offer, installed):
            # Whoever keeps news from a device can only do so until the signed metadata it last saw expires.
            self._refresh(state)
            return None
        try:
            trust.require_acceptable(offer, installed, only_full=only_full)
            self._refresh(state)
            verified = self._verified(offer)
            self._require_private(verified)
        except RefusedError as error:
            self._reporter.queue_failure(offer.offer_id, offer.version, error)
            raise
        return verified._replace(chain=self._chain(offer, installed))

    def _verified(self, offer: Offer) -> VerifiedOffer:
        manifest = self._catalogue.manifest(offer.manifest_path)
        trust.require_signed(offer, manifest, self._catalogue.signed_file(offer.package.path))
        return VerifiedOffer(offer, manifest)

    def _require_private(self, verified: VerifiedOffer) -> None:
        """Only of what will serve: the steps of a chain are just a way there."""
        signed = self._catalogue.signed_file(verified.offer.manifest_path)
        statement = self._catalogue.statement(verified.manifest)
        require_private(verified.manifest, signed.sha256, statement, max_epsilon=self._max_epsilon)

    def _chain(self, offer: Offer, installed: trust.Installed) -> tuple[VerifiedOffer, ...]:
        """The chain's steps; none when it does not hold, as it is only the cheaper way to what is offered anyway."""
        try:
            trust.require_chain(offer, installed)
            return tuple(self._verified(step) for step in trust.step_offers(offer))
        except RefusedError as error:
            _logger.warning("the chain of deltas to v%d is not taken: %s", offer.version, error)
            return ()

    def _refresh(self, state: DeviceState) -> None:
        floor = self._catalogue.refresh(state.metadata_floor)
        if floor != state.metadata_floor:
            self._states.save(state.model_copy(update={"metadata_floor": floor}))

    def _installed(self, state: DeviceState) -> trust.Installed:
        pointer = self._slots.pointer()
        active = self._slots.active()
        # The counter is kept twice: whichever file survived decides.
        is_pointer_newer = pointer.highest_version > state.highest_version
        return trust.Installed(
            model=state.model,
            version=active.manifest.version if active else None,
            tree_hash=active.manifest.tree_hash if active else None,
            highest_version=pointer.highest_version if is_pointer_newer else state.highest_version,
            highest_hash=pointer.highest_hash if is_pointer_newer else state.highest_hash,
            failed_versions=frozenset(failed.version for failed in state.failed),
            failed_hashes=frozenset(failed.tree_hash for failed in state.failed),
        )
