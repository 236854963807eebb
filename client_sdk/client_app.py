"""The Flower ClientApp.

What training needs (torch, Opacus, the accountant: seconds of imports) loads with the first message: a simulation's
driver loads this module too, before it starts its workers, and never trains.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from flwr.clientapp import ClientApp

if TYPE_CHECKING:
    from flwr.app import Context, Message

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round (`client_sdk.flower_round`)."""
    gc.disable()  # none of the half a million objects that the imports make is garbage
    try:
        from client_sdk.flower_round import answer  # noqa: PLC0415
    finally:
        gc.enable()

    return answer(message, context)
