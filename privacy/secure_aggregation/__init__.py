"""Secure aggregation: the server learns the sum of the devices' vectors, and nothing else about any of them.

SecAgg+ (Bell, Bonawitz, Gascón, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
CCS 2020; Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017) without
I/O: `Member` is one device, `Coordinator` the server, and what they say to each other are the messages here.
"""

from privacy.secure_aggregation.coordinator import Coordinator
from privacy.secure_aggregation.graph import neighbours_needed
from privacy.secure_aggregation.member import Member
from privacy.secure_aggregation.messages import Advertisement, Envelopes, MaskedVector, Neighbours, Shares, Survivors
from privacy.secure_aggregation.plan import RoundPlan

__all__ = [
    "Advertisement",
    "Coordinator",
    "Envelopes",
    "MaskedVector",
    "Member",
    "Neighbours",
    "RoundPlan",
    "Shares",
    "Survivors",
    "neighbours_needed",
]
