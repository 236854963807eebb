"""The device's key through its life: made here, made known to the service, replaced; never without one that works.

The next key is written down before the service hears of it, and takes its place only when the service has it. So a cut
leaves either the old identity alone, or both: then the next contact finds out which one the service goes by.
"""

import logging
from http import HTTPStatus
from pathlib import Path
from typing import Final

from client_sdk.disk import Disk, disk_errors, replace_file
from client_sdk.errors import DeviceError, EnrolmentError, ServiceRefusedError
from client_sdk.identity import Identity, KeyPair, new_key, read_credential, read_key
from client_sdk.lock import key_lock
from client_sdk.service import UpdateService
from client_sdk.transport import Transport

_logger = logging.getLogger(__name__)

FIRST_PROTOCOL: Final = 4
"""Of services that know keys."""

_UNKNOWN = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})


class KeyRing:
    """The identity of one enrolled device, in its home."""

    def __init__(self, home: Path, device_id: str, disk: Disk) -> None:
        self._home, self._device_id, self._disk = home, device_id, disk
        self._key, self._next = home / "device.key", home / "device.key.next"
        self._credential = home / "credential"

    @property
    def is_under_way(self) -> bool:
        """Whether a key was written down that the service may or may not have."""
        return self._next.exists()

    def identity(self) -> Identity:
        """What this device shows now.

        Raises:
            EnrolmentError: there is nothing, or it cannot be read.
        """
        known = read_key(self._key, self._device_id) or read_credential(self._credential)
        if known is None:
            raise EnrolmentError(
                f"There is neither a key nor a credential in {self._home} that can be read. Enrol this device again."
            )
        return known

    def begin(self, credential: str) -> None:
        """Start over with the credential of a new enrolment."""
        replace_file(self._disk, self._credential, credential.encode())
        # Keys of an enrolment before are nobody's any more.
        self._disk.remove(self._next)
        self._disk.remove(self._key)

    def renew(self, transport: Transport) -> bool:
        """Make a key, or take up the one under way, make it known, and sign with it from then on.

        Args:
            transport: to the enrolled service; it shows the new identity afterwards.

        Returns:
            Whether that is so; False when the service is of a release that knows no keys.

        Raises:
            EnrolmentError: the service accepts neither what the device showed before nor the new key.
            ServiceUnavailableError, ServiceRefusedError, DeviceDiskError: see `errors.py`; all is as it was, and the
                next call goes on from there.
        """
        with key_lock(self._home):
            return self._renew(transport)

    def finish(self, transport: Transport) -> None:
        """Go on with what a cut ended; raises as `renew` does."""
        with key_lock(self._home):
            # Another process may have finished it.
            if self._next.exists():
                self._renew(transport)
            transport.identity = self.identity()

    def renew_if_known(self, transport: Transport, *, protocol: int) -> None:
        """Begin to sign, if this device does not yet and the service knows keys; otherwise, or without luck, later."""
        if protocol < FIRST_PROTOCOL or self._key.exists():
            return
        try:
            with key_lock(self._home):
                if not self._key.exists():
                    self._renew(transport)
        except DeviceError as error:
            _logger.warning("requests are not signed yet: %s", error)

    def _renew(self, transport: Transport) -> bool:
        transport.identity = self.identity()
        with disk_errors(self._home, "storing the device's new key"):
            if not self._next.exists():
                replace_file(self._disk, self._next, new_key())
        found = read_key(self._next, self._device_id)
        is_known = found is not None and self._make_known(transport, found)
        with disk_errors(self._home, "storing the device's new key"):
            if found is None or not is_known:
                self._disk.remove(self._next)
                return False
            self._disk.rename(self._next, self._key)
            self._disk.sync_folder(self._home)
            self._disk.remove(self._credential)
        transport.identity = found
        return True

    def _make_known(self, transport: Transport, key: KeyPair) -> bool:
        service = UpdateService(transport)
        try:
            try:
                service.set_key(key.request())
            except EnrolmentError:
                # The service may have taken the key before a cut, and then goes by it alone.
                before, transport.identity = transport.identity, key
                try:
                    service.set_key(key.request())
                except EnrolmentError:
                    transport.identity = before
                    raise
        except ServiceRefusedError as error:
            if error.status in _UNKNOWN:
                return False
            raise
        return True
