"""The documents of hawkBit's protocol: what is answered, built; what clients send, parsed and bounded.

Source: hawkBit's direct device integration API, and what SWUpdate and others really send: an ``id`` that is a number or
an empty string, a ``time`` in any form, fields of other releases. So unknown fields are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from delta_updates.manifest import Sha256  # noqa: TC001 - pydantic reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.ddi.files import OfferedFile

    Json = dict[str, object]

_DAY = timedelta(days=1)
# Attributes by which a client may tell what it runs, as other devices do when they check for an update.
VERSION_ATTRIBUTE = "lamella.version"
HASH_ATTRIBUTE = "lamella.tree_hash"

# Behind a file's name: its md5 in the form of md5sum.
MD5SUM = ".MD5SUM"

_VersionText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]


def _check_printable(text: str) -> str:
    # Attributes are shown to operators, in terminals too.
    if not text.isprintable():
        raise ValueError("only printable characters are allowed")
    return text


_Printable = Annotated[str, AfterValidator(_check_printable)]


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(_Sent):
    """How many steps of an installation are done."""

    cnt: Annotated[int, Field(ge=0, le=2**31)] = 0
    of: Annotated[int, Field(ge=0, le=2**31)] = 0


class Result(_Sent):
    """How an execution ended, if it did."""

    finished: Literal["success", "failure", "none"]
    progress: Progress = Progress()


class Status(_Sent):
    """What a client says about an action."""

    execution: Literal["canceled", "rejected", "closed", "proceeding", "scheduled", "resumed", "download", "downloaded"]
    result: Result
    # Pieces of SWUpdate's log: as much as a body may hold.
    details: tuple[str, ...] = ()


class Feedback(_Sent):
    """The body of a feedback; which action it is about says the URL."""

    status: Status

    @property
    def reason(self) -> str:
        """The last of the details, which say how it ended, in at most 500 characters."""
        return "; ".join(self.status.details)[-500:]


class CancelFeedback(Feedback):
    """The body of a feedback to a cancellation."""

    @property
    def is_refused(self) -> bool:
        """Whether the client goes on with the action."""
        return self.status.execution == "rejected" or self.status.result.finished == "failure"

    @property
    def is_done(self) -> bool:
        """Whether the client gave the action up."""
        return self.status.execution in {"closed", "canceled"} and not self.is_refused


class ConfigData(_Sent):
    """What a controller says of itself."""

    mode: Literal["merge", "replace", "remove"] = "replace"
    data: Annotated[
        dict[Annotated[_Printable, Field(min_length=1, max_length=128)], Annotated[_Printable, Field(max_length=256)]],
        Field(max_length=100),
    ]

    def merged(self, known: dict[str, str]) -> dict[str, str]:
        """The attributes after this, given those before."""
        if self.mode == "replace":
            return dict(self.data)
        if self.mode == "remove":
            return {name: value for name, value in known.items() if name not in self.data}
        return known | self.data

    @property
    def installed(self) -> Installed | None:
        """What the controller says it runs; None when it says nothing of that.

        Raises:
            ValidationError: It says it in values that no version has.
        """
        if self.mode == "remove" or VERSION_ATTRIBUTE not in self.data:
            return None
        return Installed(version=self.data[VERSION_ATTRIBUTE], tree_hash=self.data.get(HASH_ATTRIBUTE))


class Installed(_Sent):
    """A version by number and tree hash, as text."""

    version: _VersionText
    tree_hash: Sha256 | None


@dataclass(frozen=True, kw_only=True)
class Links:
    """Where a controller finds what; ``root`` is its own URL, without a slash at the end."""

    root: str

    def deployment(self, action_id: int) -> str:
        """The URL of an action."""
        return f"{self.root}/deploymentBase/{action_id}"

    def installed(self, action_id: int) -> str:
        """The URL of the action that a device came to what it runs by."""
        return f"{self.root}/installedBase/{action_id}"

    def cancel(self, action_id: int) -> str:
        """The URL of an action's cancellation."""
        return f"{self.root}/cancelAction/{action_id}"

    def config_data(self) -> str:
        """The URL for what the controller says of itself."""
        return f"{self.root}/configData"

    def file(self, version: int, name: str) -> str:
        """The URL of a file."""
        return f"{self.root}/softwaremodules/{version}/artifacts/{name}"


def root_document(
    links: Links,
    *,
    poll_seconds: int,
    deploy: int | None = None,
    cancel: int | None = None,
    installed: int | None = None,
    is_config_wanted: bool,
) -> Json:
    """The answer to a poll: when to come again, and what to look at; `deploy`, `cancel`, `installed` are action ids."""
    found = {
        "deploymentBase": links.deployment(deploy) if deploy is not None else None,
        "cancelAction": links.cancel(cancel) if cancel is not None else None,
        "installedBase": links.installed(installed) if installed is not None else None,
        "configData": links.config_data() if is_config_wanted else None,
    }
    return {
        "config": {"polling": {"sleep": _clock(poll_seconds)}},
        "_links": {name: {"href": href} for name, href in found.items() if href is not None},
    }


def deployment_document(
    links: Links, *, action_id: int, model: str, version: int, is_forced: bool, files: Iterable[OfferedFile]
) -> Json:
    """An action: one chunk, which is the version, and its files."""
    handling = "forced" if is_forced else "attempt"
    chunk = {
        "part": "os",
        "version": str(version),
        "name": model,
        "artifacts": [_artifact(links, version, file) for file in files],
    }
    return {"id": str(action_id), "deployment": {"download": handling, "update": handling, "chunks": [chunk]}}


def cancel_document(action_id: int) -> Json:
    """An action that shall be given up."""
    return {"id": str(action_id), "cancelAction": {"stopId": str(action_id)}}


def problem_document(code: str, message: str) -> Json:
    """An error as hawkBit writes it; ``message`` says what to do next."""
    return {"exceptionClass": "", "errorCode": f"hawkbit.server.error.{code}", "message": message, "parameters": {}}


def _artifact(links: Links, version: int, file: OfferedFile) -> Json:
    href = links.file(version, file.name)
    # hawkBit's names: the one that ends in -http is for the URL without TLS.
    suffix = "" if href.startswith("https:") else "-http"
    digests = file.digests
    return {
        "filename": file.name,
        "size": digests.length,
        "hashes": {"sha1": digests.sha1, "md5": digests.md5, "sha256": digests.sha256},
        "_links": {f"download{suffix}": {"href": href}, f"md5sum{suffix}": {"href": f"{href}{MD5SUM}"}},
    }


def _clock(seconds: int) -> str:
    # The form has two digits for the hours, so a day is too long for it.
    held = min(timedelta(seconds=seconds), _DAY - timedelta(seconds=1)).seconds
    return f"{held // 3600:02}:{held // 60 % 60:02}:{held % 60:02}"
