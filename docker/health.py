#!/usr/bin/env python3
"""Healthcheck of the containers: `health.py URL [CA]` answers 200, or `health.py device` has looked for news lately."""

import json
import os
import ssl
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

_TIMEOUT_S = 4
_LATELY = timedelta(hours=3)


def answers(url: str, *authority: str) -> None:
    """Raise unless `url` answers with success; https is checked against the CA certificate in the file `authority`."""
    context = ssl.create_default_context(cafile=authority[0]) if authority else None
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S, context=context):  # noqa: S310 - our own command names it
        pass


def has_checked() -> None:
    """Raise unless this device's last look for an update is recent."""
    state = json.loads((Path(os.environ["LAMELLA_DEVICE_HOME"]) / "state.json").read_text(encoding="utf-8"))
    age = datetime.now(UTC) - datetime.fromisoformat(state["last_check_at"])
    if age > _LATELY:
        raise TimeoutError(f"the last look for an update was {age} ago")


if __name__ == "__main__":
    try:
        if sys.argv[1] == "device":
            has_checked()
        else:
            answers(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        sys.exit(f"{type(error).__name__}: {error}")
