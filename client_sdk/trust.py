"""Pure decisions: may this offer replace what is installed? No socket, no clock, no file in here.

An offer itself is not signed. It may only *choose* among signed versions, and never against what the device remembers:
a replayed, still-signed old version must not downgrade it, and the same version number must always mean the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from client_sdk.errors import OfferRefusedError
from delta_updates import VersionManifest
from delta_updates.manifest import base_hash, tree_hash
from delta_updates.offer import ChainStep, Offer

MAX_VERSION_STEP = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What the device knows about itself when it judges an offer.

    `highest_version` and `highest_hash` outlive the slots: they are the newest version ever confirmed here.
    """

    model: str
    version: int | None = None
    tree_hash: str | None = None
    highest_version: int = 0
    highest_hash: str | None = None
    failed_versions: frozenset[int] = field(default_factory=frozenset)
    failed_hashes: frozenset[str] = field(default_factory=frozenset)


class SignedFile(NamedTuple):
    """What the signed metadata says about one target."""

    path: str
    length: int
    sha256: str
    custom: Mapping[str, object]


def is_installed(offer: Offer, installed: Installed) -> bool:
    """Whether the offer names exactly what already serves."""
    return (offer.model, offer.version, offer.tree_hash) == (installed.model, installed.version, installed.tree_hash)


def require_acceptable(offer: Offer, installed: Installed, *, only_full: bool = False) -> None:
    """Judge an offer before anything is fetched for it.

    Args:
        offer: what the update service answered.
        installed: what this device has and remembers.
        only_full: whether this device asked for a full package.

    Raises:
        OfferRefusedError: the offer would downgrade the device, reuse a version number for other bytes, repeat a
            version that failed here, or names another model, another source or paths of another version.
    """
    shown = f"v{offer.version} of {offer.model!r}"
    if offer.model != installed.model:
        raise OfferRefusedError(f"The service offers {shown}, but this device runs {installed.model!r}.")
    # A replayed, still-signed offer must not downgrade the device, not even after its slots were lost.
    if offer.version < installed.highest_version:
        raise OfferRefusedError(
            f"The service offers {shown}, older than v{installed.highest_version} which this device already confirmed. "
            "A version never goes down on a device: publish the wanted content as a newer version."
        )
    # Whoever has stolen the keys could use up the numbers with one version, and no later one would ever be newer.
    if installed.highest_version and offer.version > installed.highest_version + MAX_VERSION_STEP:
        raise OfferRefusedError(
            f"The service offers {shown}, more than {MAX_VERSION_STEP} above v{installed.highest_version} which this "
            "device confirmed. No fleet has that many releases: publish it under a lower number."
        )
    if offer.version == installed.highest_version and installed.highest_hash not in {None, offer.tree_hash}:
        raise OfferRefusedError(
            f"The service offers {shown} with hash {offer.tree_hash[:12]}, but this device confirmed the same version "
            f"with hash {str(installed.highest_hash)[:12]}. A version number must always mean the same bytes."
        )
    if offer.version in installed.failed_versions or offer.tree_hash in installed.failed_hashes:
        raise OfferRefusedError(
            f"The service offers {shown}, which failed its self-test on this device. It is not tried again: publish a "
            "newer version."
        )
    _require_paths(offer)
    source = offer.package.source_version
    if source is not None and (only_full or source != installed.version):
        have = "nothing" if installed.version is None else f"v{installed.version}"
        raise OfferRefusedError(
            f"The service offers a delta from v{source} to {shown}, but this device "
            f"{'asked for a full package' if only_full else f'has {have} installed'}."
        )


def step_offers(offer: Offer) -> tuple[Offer, ...]:
    """The steps of an offer's chain, each as an offer of its own."""
    return tuple(
        offer.model_copy(update={**{name: getattr(step, name) for name in ChainStep.model_fields}, "chain": ()})
        for step in offer.chain
    )


def require_chain(offer: Offer, installed: Installed) -> None:
    """Judge the chain of an offer that passed `require_acceptable`: it must lead from here to exactly what is offered.

    Raises:
        OfferRefusedError: it starts or ends elsewhere, has a gap, or goes down in between.
    """
    version = installed.version
    for step in step_offers(offer):
        _require_paths(step)
        if version is None or step.package.source_version != version or step.version <= version:
            raise OfferRefusedError(
                f"The chain of v{offer.version} has a delta from v{step.package.source_version} to v{step.version}, "
                f"where one from {'nothing' if version is None else f'v{version}'} is needed."
            )
        version = step.version
    if offer.chain and (version, offer.chain[-1].tree_hash) != (offer.version, offer.tree_hash):
        raise OfferRefusedError(f"The chain of v{offer.version} ends at v{version} or at other contents of it.")


def require_signed(offer: Offer, manifest: VersionManifest, package: SignedFile) -> None:
    """Hold an offer against the signed manifest and the signed package facts.

    Args:
        offer: an offer that passed `require_acceptable`.
        manifest: parsed from bytes that match their signed length and hash.
        package: the signed length, hash and custom facts of the package's target path.

    Raises:
        OfferRefusedError: any fact of the offer differs from what is signed, or the manifest contradicts itself.
    """
    for what, offered, signed in (
        ("model", offer.model, manifest.model),
        ("version", offer.version, manifest.version),
        ("tree hash", offer.tree_hash, manifest.tree_hash),
        ("package path", offer.package.path, package.path),
        ("package length", offer.package.length, package.length),
        ("package sha256", offer.package.sha256, package.sha256),
        ("manifest's tree hash", tree_hash(manifest.files), manifest.tree_hash),
        ("manifest's base hash", base_hash(manifest.files), manifest.base_hash),
    ):
        if offered != signed:
            raise OfferRefusedError(
                f"The offer of v{offer.version} contradicts what is signed: {what} {offered!r}, signed {signed!r}."
            )
    # A signer may attach what a package is for; where it did, it must be what the offer says it is (mix and match).
    claims = {
        "model": offer.model,
        "version": offer.version,
        "tree_hash": offer.tree_hash,
        "source_version": offer.package.source_version,
    }
    for key, offered_claim in claims.items():
        if key in package.custom and package.custom[key] != offered_claim:
            raise OfferRefusedError(
                f"The offer of v{offer.version} contradicts what is signed: the package's {key} is "
                f"{package.custom[key]!r}, offered as {offered_claim!r}."
            )


def _require_paths(offer: Offer) -> None:
    # Signed paths carry model and version, so a signed file of another version cannot stand in for this one.
    wanted_manifest = f"manifests/{offer.model}/{offer.version}.json"
    wanted_packages = f"packages/{offer.model}/{offer.version}/"
    name = offer.package.path.removeprefix(wanted_packages)
    is_inside = offer.package.path.startswith(wanted_packages) and name and "/" not in name and not name.startswith(".")
    if offer.manifest_path != wanted_manifest or not is_inside:
        raise OfferRefusedError(
            f"The offer of v{offer.version} points at {offer.manifest_path!r} and {offer.package.path!r}; expected "
            f"{wanted_manifest!r} and a file directly under {wanted_packages!r}."
        )
