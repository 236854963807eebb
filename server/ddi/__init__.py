"""hawkBit's direct device integration: its documents, what its words mean here, and the files that its clients load."""

from server.ddi.actions import Step, is_forced, next_step, take_cancel_feedback, take_feedback
from server.ddi.documents import (
    MD5SUM,
    CancelFeedback,
    ConfigData,
    Feedback,
    Links,
    cancel_document,
    deployment_document,
    problem_document,
    root_document,
)
from server.ddi.files import OfferedFile, find_file, load_signer, offered_files

__all__ = [
    "MD5SUM",
    "CancelFeedback",
    "ConfigData",
    "Feedback",
    "Links",
    "OfferedFile",
    "Step",
    "cancel_document",
    "deployment_document",
    "find_file",
    "is_forced",
    "load_signer",
    "next_step",
    "offered_files",
    "problem_document",
    "root_document",
    "take_cancel_feedback",
    "take_feedback",
]
