"""What can go wrong in this package, split by who can act."""


class PrivacyError(Exception):
    """Root of every error this package raises on purpose."""


class InstructionsError(PrivacyError):
    """The server's round instructions are malformed or out of bounds: the operator must correct the run's recipe."""


class ContributionError(PrivacyError):
    """A device's privacy facts are malformed or out of bounds: refuse the contribution and name the device."""


class LedgerError(PrivacyError):
    """The ledger file cannot be trusted as it stands: a person must look at it before anything more is released."""


class BrokenChainError(LedgerError):
    """A line of a ledger was changed, removed, moved or put in: release nothing, and find out who could write there."""


class UnknownEventError(PrivacyError):
    """An event names a mechanism this version cannot account for: upgrade, or withdraw the release."""


class CalibrationError(PrivacyError):
    """No amount of noise in the supported range meets the target: change the target, the steps or the batch size."""


class BudgetExceededError(PrivacyError):
    """The next event would spend more than the budget allows: do not run it."""


class UnsupportedModuleError(PrivacyError):
    """The module or its loss gives no sound per-example gradients: a developer must change it."""


class AuditError(PrivacyError):
    """The measurements given to an audit cannot support any statement: measure again."""


class SecureSumError(PrivacyError):
    """A secure sum cannot go on as asked: too few members are left, or somebody does not keep to the protocol."""


class ReportError(PrivacyError):
    """A report folder is incomplete, unreadable or contradicts its own ledger."""


class StatementError(PrivacyError):
    """A release's privacy statement is malformed, not signed by the right key, or does not follow from its ledger."""


class UnreadableKeyError(PrivacyError):
    """A file that was named as a public key is none: give the releases key's public half."""
