"""What holds for every release of one kind: trust, exclusions, numerics and limits, as (lead, text) in plain words."""

from __future__ import annotations

Item = tuple[str, str]

# Trust.
DEVICE_ADDS_NOISE: Item = (
    "The device",
    "is trusted with its own examples. It clips, draws the noise and keeps its own ledger.",
)
DEVICE_ADDS_A_SHARE: Item = (
    "The device",
    "is trusted with its own examples. It clips its update, adds its share of the noise, and keeps its own ledger.",
)
DEVICE_ADDS_NOTHING: Item = (
    "The device",
    "is trusted with its own examples. It adds no noise: what it sends can reveal them to whoever sees it alone.",
)
SERVER_SEES_NOISE: Item = (
    "The server",
    (
        "is not trusted with examples: the noise is added before anything leaves the device. It is trusted to name "
        "the ledger's events truthfully in this report; each device can check its own."
    ),
)
SERVER_SEES_THE_SUM: Item = (
    "Single updates",
    "left their devices under masks: the server saw their sum alone, as long as it brought together real devices.",
)
USERS_TRUST_THE_SERVER: Item = (
    "The server, for the guarantee per user,",
    (
        "is trusted: it sees each contribution and adds the noise to their sum. It is also trusted to name the "
        "ledger's events truthfully in this report."
    ),
)
USERS_TRUST_EACH_OTHER: Item = (
    "For the guarantee per user,",
    (
        "the server is trusted to bring together real devices, and to unmask no sum of too few; it sees no single one. "
        "The devices are trusted to clip, and to add their shares of the noise: all but those not counted on."
    ),
)
OTHERS_SEE_NOISY_UPDATES: Item = (
    "Other devices and users of the release",
    "see only what was computed from noisy updates, which costs nothing more.",
)
OTHERS_SEE_NOISY_SUMS: Item = (
    "Other devices and users of the release",
    "see only what was computed from noisy sums, which costs nothing more.",
)
NETWORK: Item = (
    "Whoever listens on the network",
    "learns that a device took part, when, and how much it sent. That is not covered by ε.",
)

# What is not covered.
ONE_EXAMPLE: Item = (
    "One example, not one person.",
    (
        "A person wrote many of the examples on a device. ε holds for each one of them, not for all together: for "
        "k examples of one person it grows up to k times as large, and δ by more than that."
    ),
)
REPEATED_TEXT: Item = (
    "Repeated text.",
    "An example that sits on several devices, or several times on one, counts as several examples.",
)
ONE_DEVICE: Item = (
    "One device, not one person.",
    (
        "A user is a device, by the pseudonym that it trains under. A person with two, or with a new home for the old "
        "one, is covered once for each: for k of them ε grows up to k times as large, and δ by more than that."
    ),
)
COUNT_IS_PUBLIC: Item = (
    "The number of examples is public.",
    (
        "Each device tells how many examples it used, up to a cap. That number sets the sampling probability and "
        "is treated as public."
    ),
)
COUNT_IS_WITHHELD: Item = (
    "The number of examples stays on the device.",
    "Each says the cap, whatever it has; that it has any at all shows in that it takes part.",
)
NOT_COVERED: Item = (
    "Not covered by ε.",
    (
        "The data that the base was pretrained on; the choice of settings before this run; the held-out examples "
        "on which quality and membership were measured; the fact of taking part."
    ),
)

# What else could weaken it.
DROPOUT_PER_EXAMPLE: Item = (
    "Dropout and aborted rounds are charged.",
    (
        "A device charges its ledger before it trains. Whether its reply arrived or the round became void changes "
        "nothing: what was computed is spent. A device whose reply never arrived may have spent more than the "
        "events of this report show; its own ledger knows."
    ),
)
DROPOUT_PER_USER: Item = (
    "Dropout and aborted rounds, per user.",
    (
        "The noise in a sum is what was promised, however many contributions are missing. A round is charged as soon "
        "as the server has seen a contribution, whether it came to a release or not."
    ),
)
DROPOUT_IN_SHARES: Item = (
    "Dropout and aborted rounds, where devices add the noise in shares.",
    (
        "A sum with fewer shares than are counted on is never unmasked, and then nothing of anybody was seen. More "
        "shares than that only add noise."
    ),
)
RANDOM_NUMBERS: Item = (
    "Random numbers.",
    "Sampling and noise come from ChaCha20 streams; the operating system's cryptographic generator draws each key.",
)
FLOATING_POINT: Item = (
    "Floating point.",
    (
        "The proof is about real numbers. Noise is made and added in 64-bit arithmetic and then rounded to 32 "
        "bits; attacks on the lowest bits (Mironov 2012) are made harder by that, not proved impossible."
    ),
)
WHOLE_NUMBERS: Item = (
    "Whole numbers.",
    "Updates are rounded to whole numbers and noised with whole numbers: the proof is about what was really added.",
)

# Limits: those of the unit on page one, the rest at the end.
PER_EXAMPLE_ONLY = "It gives no guarantee per person or per device, only per example."
USER_IS_A_DEVICE = (
    "The guarantee per user is one per device, and counts only the rounds of this ledger. Who was drawn in a round is "
    "in the ledger: where sampling is credited, keep the ledger from those who see the releases."
)
SERVER_SAW_UPDATES = "The server saw each update, and is trusted with it."
CAN_BE_REFUTED = "An audit that passes has not been refuted; that is all it can say."
LIMITS: tuple[Item, ...] = (
    ("", "This page by itself proves no origin. A signed statement beside it does, for who checks it (see above)."),
    ("", "It trusts that devices ran the stated code. A tampered device harms only its own examples."),
    ("", "The membership test is one attack on one sample. Failing to find a leak is no proof that there is none."),
    ("", CAN_BE_REFUTED),
)
