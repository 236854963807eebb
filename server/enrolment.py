"""What an operator hands to a device out of band: where the service is, a token, and the root of its trust."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from delta_updates import EnrolmentFile

if TYPE_CHECKING:
    from server.config import Settings
    from server.registry import EnrolmentTokenRecord, Registry
    from server.signing import SignedMetadata

# More devices than that want tokens of their own: whoever has one token enrols them all.
MAX_USES: Final = 100_000


def make_enrolment_file(
    settings: Settings, registry: Registry, metadata: SignedMetadata, *, model: str, uses: int = 1
) -> tuple[EnrolmentFile, EnrolmentTokenRecord]:
    """Make a token for ``uses`` devices and the file to hand to them, with the newest root pinned.

    Raises:
        NotFoundError: There is no such model.
    """
    root = json.loads(metadata.root_bytes())
    token, record = registry.create_enrolment_token(
        model, valid_for=timedelta(hours=settings.enrolment_hours), uses=uses
    )
    return EnrolmentFile(server_url=settings.public_url, model=model, token=token, root=root), record
