"""Signed metadata (The Update Framework): roles, keys, documents, and the ceremonies that change who is trusted."""

from server.signing.ceremony import Ceremonies
from server.signing.initialise import DEFAULT_BINS, initialise
from server.signing.keys import KeyFolder
from server.signing.overview import TrustOverview, overview
from server.signing.proposal import Proposal
from server.signing.repository import NewTarget, OfflineExpiry, SignedMetadata
from server.signing.roles import OFFLINE, ONLINE, Lifetimes

__all__ = [
    "DEFAULT_BINS",
    "OFFLINE",
    "ONLINE",
    "Ceremonies",
    "KeyFolder",
    "Lifetimes",
    "NewTarget",
    "OfflineExpiry",
    "Proposal",
    "SignedMetadata",
    "TrustOverview",
    "initialise",
    "overview",
]
