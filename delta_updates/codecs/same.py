"""Codec `same`: the chunk is what the source already has."""

from delta_updates.codecs.codec import Encoded
from delta_updates.codecs.elements import ElementKind
from delta_updates.codecs.layouts import Layout
from delta_updates.errors import PackageFormatError


class Same:
    """Nothing travels."""

    def encode(self, target: bytes, source: bytes, kind: ElementKind) -> Encoded | None:
        """Return an empty payload when both are equal."""
        del kind
        return Encoded(Layout.RAW, 0, b"") if target == source else None

    def decode(self, encoded: Encoded, source: bytes, kind: ElementKind, length: int) -> bytes:
        """Return the source."""
        del kind
        if encoded.frame or encoded.plain_length or encoded.layout or len(source) != length:
            raise PackageFormatError(f"a copy of {length} bytes has a payload or another length than its source")
        return source
