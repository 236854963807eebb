"""Become a device of one server: pin its root, trade the one-time token for an identity, remember both durably."""

from pathlib import Path

from pydantic import ValidationError

from client_sdk.disk import Disk, disk_errors, make_private_folder, replace_file
from client_sdk.errors import EnrolmentError
from client_sdk.key_ring import KeyRing
from client_sdk.lock import update_lock
from client_sdk.metadata import checked_root, pinned_root_path
from client_sdk.service import UpdateService
from client_sdk.slots import SlotStore
from client_sdk.state import DeviceState, StateFile
from client_sdk.transport import Transport
from delta_updates import EnrolmentFile, EnrolRequest

_MAX_ENROLMENT_BYTES = 1 << 20


def enrol(
    home: Path,
    enrolment: EnrolmentFile,
    *,
    name: str,
    transport: Transport,
    allow_http: bool,
    states: StateFile,
    slots: SlotStore,
    disk: Disk,
) -> None:
    """Enrol the device of a home; see `Device.enroll`."""
    root = checked_root(enrolment.root)
    try:
        request = EnrolRequest(token=enrolment.token, name=name)
    except ValidationError as error:
        raise EnrolmentError(f"{name!r} cannot be a device's name: 1 to 64 printable characters.") from error
    with disk_errors(home, "preparing the device's folder"):
        make_private_folder(home)
        make_private_folder(home / "trust")
    with update_lock(home):
        _require_new(home, enrolment.model, states, slots)
        service = UpdateService(transport)
        reply = service.enrol(request)
        with disk_errors(home, "storing the enrolment"):
            replace_file(disk, pinned_root_path(home / "trust"), root)
            ring = KeyRing(home, reply.device_id, disk)
            ring.begin(reply.credential)
        # Written last: until it is there, the device is not enrolled.
        states.save(
            DeviceState(
                server_url=transport.server_url,
                allow_http=allow_http,
                model=enrolment.model,
                device_id=reply.device_id,
                name=name,
            )
        )
        transport.identity = ring.identity()
        ring.renew_if_known(transport, protocol=service.protocol)


def read_enrolment(path: Path) -> EnrolmentFile:
    """The operator's file.

    Raises:
        EnrolmentError: it cannot be read or is something else.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_ENROLMENT_BYTES)
    except OSError as error:
        raise EnrolmentError(f"The enrolment file {path} cannot be read: {error.strerror}.") from error
    try:
        return EnrolmentFile.model_validate_json(raw)
    except ValidationError as error:
        # The message names the field, never its value: the file holds a token.
        field = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"]) or "JSON"
        raise EnrolmentError(
            f"{path} is not an enrolment file (problem with {field}). Ask the operator for a new one."
        ) from None


def _require_new(home: Path, model: str, states: StateFile, slots: SlotStore) -> None:
    if states.exists():
        state = states.load()
        raise EnrolmentError(
            f"{home} is already enrolled as {state.name!r} ({state.device_id}) at {state.server_url}. Use "
            "another --home, or remove its state.json to enrol it again (versions and counter are kept)."
        )
    # The version counter belongs to one model: it must not judge the versions of another.
    confirmed = slots.pointer().confirmed
    if confirmed and confirmed.model != model:
        raise EnrolmentError(
            f"{home} holds a version of {confirmed.model!r}, but the enrolment file is for {model!r}. Use "
            "another --home."
        )
