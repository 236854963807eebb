"""The keys of a recipe that say whether the server sees updates, or their sum alone."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class SecureSumRecipe(BaseModel):
    """The part of `Recipe` about secure aggregation; without effect where `secure-aggregation` is off."""

    secure_aggregation: Annotated[
        bool,
        Field(
            description="The server learns the sum of the updates and no single one (SecAgg+); every device weighs "
            "as much, and none tells how many examples it has."
        ),
    ] = False
    secure_clipping_norm: Annotated[
        float, Field(gt=0, le=1e6, description="L2 bound of one update under it; a device clips to it.")
    ] = 1.0
    secure_dropouts: Annotated[
        float, Field(ge=0, lt=0.5, description="Largest share of a cohort that may fall silent and the sum be kept.")
    ] = 0.2
    secure_colluding: Annotated[
        float,
        Field(
            ge=0,
            lt=0.5,
            description="Largest share of a cohort that may work with the server; noise of theirs is not counted on.",
        ),
    ] = 0.0
