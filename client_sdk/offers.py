"""Ask for an update, and verify all of the answer that can be verified without its package."""

from typing import NamedTuple

from client_sdk import trust
from client_sdk.errors import RefusedError
from client_sdk.metadata import SignedCatalogue
from client_sdk.reports import Reporter
from client_sdk.service import UpdateService
from client_sdk.slots import SlotStore
from client_sdk.state import DeviceState, StateFile
from delta_updates import Offer, UpdateQuery, VersionManifest


class VerifiedOffer(NamedTuple):
    """An offer that `trust` accepted, with its signed manifest."""

    offer: Offer
    manifest: VersionManifest


class OfferFinder:
    """Holds what the service offers against what this device remembers and what is signed."""

    def __init__(
        self,
        *,
        states: StateFile,
        slots: SlotStore,
        service: UpdateService,
        catalogue: SignedCatalogue,
        reporter: Reporter,
    ) -> None:
        self._states = states
        self._slots = slots
        self._service = service
        self._catalogue = catalogue
        self._reporter = reporter

    def find(self, *, only_full: bool = False) -> VerifiedOffer | None:
        """Ask the service for an offer; None when there is nothing newer for this device.

        Raises:
            RefusedError: the offer or what is signed does not hold; the service is told once.
            ServiceUnavailableError, EnrolmentError, DeviceDiskError: see `errors.py`.
        """
        state = self._states.load()
        installed = self._installed(state)
        query = UpdateQuery(
            model=state.model,
            installed_version=installed.version,
            installed_hash=installed.tree_hash,
            only_full=only_full,
        )
        offer = self._service.ask(query)
        if offer is None or trust.is_installed(offer, installed):
            # Whoever keeps news from a device can only do so until the signed metadata it last saw expires.
            self._refresh(state)
            return None
        try:
            trust.require_acceptable(offer, installed, only_full=only_full)
            self._refresh(state)
            manifest = self._catalogue.manifest(offer.manifest_path)
            trust.require_signed(offer, manifest, self._catalogue.signed_file(offer.package.path))
        except RefusedError as error:
            self._reporter.queue_failure(offer, error)
            raise
        return VerifiedOffer(offer, manifest)

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
