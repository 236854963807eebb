"""What holds for every release of this kind: trust, exclusions, numerics and limits, as (lead, text) in plain words."""

from __future__ import annotations

TRUST = (
    ("The device", "is trusted with its own examples. It clips, draws the noise and keeps its own ledger."),
    (
        "The server",
        (
            "is not trusted with examples: the noise is added before anything leaves the device. It is trusted to name "
            "the ledger's events truthfully in this report; each device can check its own."
        ),
    ),
    (
        "Other devices and users of the release",
        "see only what was computed from noisy updates, which costs nothing more.",
    ),
    (
        "Whoever listens on the network",
        "learns that a device took part, when, and how much it sent. That is not covered by ε.",
    ),
)

USERS_TRUST_THE_SERVER = (
    "The server, for the guarantee per user,",
    "is trusted: it sees each contribution and adds the noise to their sum.",
)

USERS_TRUST_EACH_OTHER = (
    "For the guarantee per user,",
    (
        "the server is trusted to bring together real devices, and to unmask no sum of too few; it sees no single one. "
        "The devices are trusted to clip, and to add their shares of the noise: all but those not counted on."
    ),
)

EXCLUSIONS = (
    (
        "One example, not one person.",
        (
            "A person wrote many of the examples on a device. ε holds for each one of them, not for all together: for "
            "k examples of one person it grows up to k times as large, and δ by more than that."
        ),
    ),
    (
        "Repeated text.",
        ("An example that sits on several devices, or several times on one, counts as several examples."),
    ),
    (
        "The number of examples is public.",
        (
            "Each device tells how many examples it used, up to a cap. That number sets the sampling probability and "
            "is treated as public."
        ),
    ),
    (
        "Not covered by ε.",
        (
            "The data that the base was pretrained on; the choice of settings before this run; the held-out examples "
            "on which quality and membership were measured; the fact of taking part."
        ),
    ),
)

NUMERICS = (
    (
        "Dropout and aborted rounds are charged.",
        (
            "A device charges its ledger before it trains. Whether its reply arrived or the round became void changes "
            "nothing: what was computed is spent. A device whose reply never arrived may have spent more than the "
            "events of this report show; its own ledger knows."
        ),
    ),
    (
        "Random numbers.",
        "Sampling and noise come from ChaCha20 streams; the operating system's cryptographic generator draws each key.",
    ),
    (
        "Floating point.",
        (
            "The proof is about real numbers. Noise is made and added in 64-bit arithmetic and then rounded to 32 "
            "bits; attacks on the lowest bits (Mironov 2012) are made harder by that, not proved impossible."
        ),
    ),
)

PER_EXAMPLE_ONLY = "It gives no guarantee per person or per device, only per example."
USER_IS_A_DEVICE = (
    "The guarantee per user is one per device, trusts the server as said above, and counts only the rounds of this "
    "ledger. Who was "
    "drawn in a round is in the ledger: where sampling is credited, keep the ledger from those who see the releases."
)
LIMITS = (
    ("", "This page by itself proves no origin. A signed statement beside it does, for who checks it (see above)."),
    ("", "It trusts that devices ran the stated code. A tampered device harms only its own examples."),
    ("", "The membership test is one attack on one sample. Failing to find a leak is no proof that there is none."),
    ("", "An audit that passes has not been refuted; that is all it can say."),
)
