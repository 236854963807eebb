"""The Flower ServerApp.

The registry and the model (seconds of imports) load when the run begins, while a simulation starts its workers.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from flwr.serverapp import Grid, ServerApp

if TYPE_CHECKING:
    from flwr.app import Context

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the recipe in Flower's run config (`server.federation.execution`)."""
    gc.disable()  # none of the half a million objects that the imports make is garbage
    try:
        from server.federation.execution import execute_run  # noqa: PLC0415
    finally:
        gc.enable()

    execute_run(grid, context)
