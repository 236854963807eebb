"""Numbers that people typed into forms."""

from server.errors import InvalidRecordError


def whole_number(text: str, *, least: int, most: int, problem: str) -> int:
    """A number of the form ``12`` between two bounds, both included.

    Raises:
        InvalidRecordError: It is none, or outside; ``problem`` says what it must be.
    """
    # The length first: reading a number of many digits takes long.
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise InvalidRecordError(problem)
    return int(text)
