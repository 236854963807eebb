"""Upkeep: the doctor finds and mends what crashes and disks leave, the collector removes what nobody needs."""

from server.upkeep.collector import Collected, collect
from server.upkeep.doctor import Finding, examine, mend
from server.upkeep.workshop import Workshop

__all__ = ["Collected", "Finding", "Workshop", "collect", "examine", "mend"]
