"""Classes of devices that a model is converted for: what they have, not how fast they are.

Memory is what is built in; `usable_share` is what one application may take of it before the system stops it or starts
to swap: phones end an application at about half of the memory, a computer leaves more. Measure speed on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from model.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import ModelConfig

_GB: Final = 1_000_000_000
_CACHE_ITEM_BYTES: Final = 2  # llama.cpp and mlx-lm keep float16
# Activations, logits, the tokenizer and the runtime itself: 60 to 150 MB were seen for models of 135M to 1.1B weights.
_RUNTIME_BYTES: Final = 150_000_000


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """A kind of device.

    Attributes:
        name: What `--target-device` says.
        what: Examples of it.
        memory_bytes: Built-in memory.
        usable_share: Part of it that one application may take.
        threads: Fast cores, which is how many threads decoding should use.
        quantization: int8 where memory allows, int4 where it is scarce.
    """

    name: str
    what: str
    memory_bytes: int
    usable_share: float
    threads: int
    quantization: str

    @property
    def usable_bytes(self) -> int:
        """What one application may take."""
        return int(self.memory_bytes * self.usable_share)


@dataclass(frozen=True)
class Fit:
    """Whether a converted model has room on a device.

    Attributes:
        weights_bytes: Size of its file or files.
        cache_bytes: Keys and values of a full context, float16.
        runtime_bytes: An allowance for everything else.
        usable_bytes: What the device gives an application.
        context: Tokens that the cache was counted for.
    """

    weights_bytes: int
    cache_bytes: int
    runtime_bytes: int
    usable_bytes: int
    context: int

    @property
    def needed_bytes(self) -> int:
        """Weights, cache and the rest."""
        return self.weights_bytes + self.cache_bytes + self.runtime_bytes

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.needed_bytes <= self.usable_bytes


DEVICES: Final[Mapping[str, DeviceClass]] = {
    device.name: device
    for device in (
        DeviceClass(
            name="phone-entry", what="phones of 3 GB, such as many Android Go devices", memory_bytes=3 * _GB,
            usable_share=0.35, threads=2, quantization="int4",
        ),
        DeviceClass(
            name="phone", what="phones of 6 GB, such as iPhone 13 to 15", memory_bytes=6 * _GB,
            usable_share=0.5, threads=2, quantization="int4",
        ),
        DeviceClass(
            name="phone-high", what="phones of 8 to 16 GB, such as iPhone 15 Pro or Pixel 8 Pro", memory_bytes=8 * _GB,
            usable_share=0.5, threads=4, quantization="int8",
        ),
        DeviceClass(
            name="tablet", what="tablets of 8 GB, such as iPad Air", memory_bytes=8 * _GB,
            usable_share=0.5, threads=4, quantization="int8",
        ),
        DeviceClass(
            name="raspberry-pi-zero-2", what="Raspberry Pi Zero 2 W, 512 MB", memory_bytes=512_000_000,
            usable_share=0.75, threads=4, quantization="int4",
        ),
        DeviceClass(
            name="raspberry-pi-5", what="Raspberry Pi 5 of 8 GB", memory_bytes=8 * _GB,
            usable_share=0.75, threads=4, quantization="int8",
        ),
        DeviceClass(
            name="laptop", what="laptops of 16 GB", memory_bytes=16 * _GB,
            usable_share=0.6, threads=4, quantization="int8",
        ),
        DeviceClass(
            name="desktop", what="computers of 32 GB", memory_bytes=32 * _GB,
            usable_share=0.7, threads=8, quantization="int8",
        ),
    )
}  # fmt: skip


def device_class(name: str) -> DeviceClass:
    """The named class.

    Raises:
        ExportError: There is none of that name.
    """
    if name not in DEVICES:
        raise ExportError(f"no device class {name!r}; choose {', '.join(DEVICES)}")
    return DEVICES[name]


def fit(device: DeviceClass, config: ModelConfig, *, weights_bytes: int, context: int) -> Fit:
    """Count what a model needs on a device, with a context of `context` tokens (or the model's, if shorter)."""
    tokens = min(context, config.max_context)
    return Fit(
        weights_bytes=weights_bytes,
        cache_bytes=config.kv_cache_elements() * _CACHE_ITEM_BYTES * tokens,
        runtime_bytes=_RUNTIME_BYTES,
        usable_bytes=device.usable_bytes,
        context=tokens,
    )
