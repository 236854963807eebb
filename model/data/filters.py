"""What is kept out of training data: a small net against profanity and addresses, not a moderation system."""

from __future__ import annotations

import re
from typing import Final

_EMAIL: Final = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64}")
# Refused wherever they stand in a word: hardly an innocent word holds them.
_STEMS: Final = re.compile(
    "fuck|bitch|asshole|arsehole|bastard|bullshit|cocksuck|dickhead|faggot|jackass|nigga|nigger|slut|whore|wanker"
)
# Refused as whole words only, since innocent words begin like them.
_WORDS: Final = re.compile(
    r"\b(?:bollocks|chink|cock|cum|cunts?|damn|dicks?|dildo|dyke|fags?|goddamn|penis|porno?|pricks?|pussy|raped?|"
    r"rapist|retard(?:s|ed)?|shit(?:s|ty)?|spic|tits?|tranny|twat|vagina)\b"
)


def is_clean(text: str) -> bool:
    """Whether a text holds neither a listed profanity nor an e-mail address."""
    lowered = text.lower()
    # The address pattern tries every letter of a text, and hardly any text has the sign.
    has_address = "@" in lowered and _EMAIL.search(lowered)
    return not (has_address or _STEMS.search(lowered) or _WORDS.search(lowered))
