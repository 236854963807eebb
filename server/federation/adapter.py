"""A run's adapter: its shape, the version it starts from, and how it becomes the next release.

Devices have a release Q, rounded from the server's own master M. A run starts from Q, because that is what devices
compute with, and moves it to A. What rounding left behind, M - Q, is added then: the next master is A + (M - Q), and
the next release is that one rounded. So no error is carried from release to release but the last one, at most half a
level for each number, however many releases there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import safetensors
import torch
from safetensors.numpy import load, save

from model import (
    LoRAConfig,
    QuantizedAdapter,
    load_adapter,
    load_quantized_adapter,
    save_adapter,
    save_quantized_adapter,
)
from server.errors import ArtifactDamagedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from model import AdapterFormat
    from server.artifacts import ArtifactStore
    from server.federation.recipe import Recipe
    from server.federation.replies import AdapterState

# Keys of `RoundRecord.artifacts`.
ADAPTER: Final = "adapter"
OPTIMIZER: Final = "optimizer"


@dataclass(frozen=True)
class ParentRelease:
    """The adapter that a run started from.

    Attributes:
        floats: What devices compute with, float32.
        quantized: The same in few bits; None when it is stored as floats.
        left_behind: Master minus `floats`, by tensor; empty when the version has no master.
    """

    floats: AdapterState
    quantized: QuantizedAdapter | None
    left_behind: AdapterState


def lora_of(recipe: Recipe) -> LoRAConfig:
    """The adapter's shape that a recipe asks for."""
    return LoRAConfig(rank=recipe.rank, alpha=recipe.alpha, dropout=0.0, targets=recipe.target_names)


def released_floats(tree: Path, lora: LoRAConfig) -> AdapterState | None:
    """The adapter of a version's tree as every device computes with it, float32; None: it has another shape or none.

    Raises:
        AdapterError: The adapter is damaged.
    """
    if not (tree / "adapter").is_dir():
        return None
    state, its_lora = load_adapter(tree / "adapter")
    return {name: tensor.float().numpy() for name, tensor in state.items()} if its_lora == lora else None


def parent_release(
    tree: Path, lora: LoRAConfig, *, artifacts: ArtifactStore, master_sha256: str | None
) -> ParentRelease | None:
    """The adapter that a run of this shape starts from in a version's tree; None: a run starts from a fresh one.

    Args:
        tree: The version.
        lora: The run's shape.
        artifacts: Where masters are.
        master_sha256: The version's master; None: it was released without.

    Raises:
        AdapterError: The adapter is damaged.
        ArtifactMissingError, ArtifactDamagedError: The master is lost, or does not fit its release.
    """
    floats = released_floats(tree, lora)
    if floats is None:
        return None
    left_behind: AdapterState = {}
    if master_sha256 is not None:
        master = _read_master(artifacts, master_sha256, floats)
        left_behind = {name: master[name] - released for name, released in floats.items()}
    return ParentRelease(floats, load_quantized_adapter(tree / "adapter"), left_behind)


def master_of(trained: Mapping[str, npt.NDArray[np.float32]], parent: ParentRelease | None) -> AdapterState:
    """The unrounded adapter: where a run ended, and what rounding had left behind before it began, float32."""
    if parent is None or not parent.left_behind:
        return dict(trained)
    return {name: (values + parent.left_behind[name]).astype(np.float32) for name, values in trained.items()}


def master_bytes(master: AdapterState) -> bytes:
    """A master as an artifact; the same one gives the same bytes."""
    return save(master)


def write_release(
    folder: Path, master: AdapterState, lora: LoRAConfig, *, form: AdapterFormat, parent: ParentRelease | None
) -> None:
    """Round a master and write it as devices get it.

    Raises:
        AdapterError: A value is not finite or too large for the format.
        CheckpointError: This disk does not take it.
    """
    if form == "float16":
        save_adapter(folder, {name: torch.from_numpy(values) for name, values in master.items()}, lora)
        return
    previous = None if parent is None else parent.quantized
    save_quantized_adapter(folder, QuantizedAdapter.of(master, form, previous=previous), lora)


def _read_master(artifacts: ArtifactStore, digest: str, released: AdapterState) -> AdapterState:
    try:
        master: AdapterState = load(artifacts.read_bytes(digest))
    except safetensors.SafetensorError as error:
        raise ArtifactDamagedError(f"Artifact {digest} is no adapter: {error}. Restore it from a backup.") from error
    if {name: values.shape for name, values in master.items()} != {n: values.shape for n, values in released.items()}:
        raise ArtifactDamagedError(f"Artifact {digest} is the master of another version. Restore the registry.")
    return master
