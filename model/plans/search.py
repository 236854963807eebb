"""The plan that promises the lowest loss within what a device has: memory, and time for a token.

The space is small enough to look at all of it: shapes, widths in steps of one head group, even depths, and five
feed-forward widths. It does not depend on the budget, so a larger budget never gives a worse plan.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from model.errors import ConfigError
from model.plans.arithmetic import plan_cost
from model.plans.loss import loss_proxy
from model.plans.shapes import SHAPES, WIDTHS, Size, plan_of, shape_named
from model.plans.sharing import with_repeated_layers, with_shared_kv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from model.config import ModelConfig

# Bits that a stored weight takes: int8 has a scale for each output channel, int4 a 16-bit scale and zero for each 32.
BITS_PER_WEIGHT: Final = {32: 32.0, 16: 16.0, 8: 8.05, 4: 5.0}

_DEPTHS: Final = range(4, 65, 2)
_FFN_STRETCHES: Final = (0.625, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device gives a model.

    Attributes:
        memory_bytes: For weights and cache; what the program itself takes comes on top.
        bandwidth: Bytes a second that decoding really reads; CPUs reach 60 to 85 % of what a copy does.
        flops: Operations a second.
    """

    memory_bytes: float
    bandwidth: float = 12e9
    flops: float = 50e9

    def __post_init__(self) -> None:
        """Refuse a device that has nothing."""
        if not all(value > 0 for value in (self.memory_bytes, self.bandwidth, self.flops)):
            raise ConfigError(f"memory, bandwidth and operations a second must be positive: {self}")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How a plan is stored and used.

    Attributes:
        weight_bits: 32, 16, 8 or 4.
        kv_bytes_per_element: Bytes of a number in the cache.
        context: Tokens that the cache has room for, and that the slowest token attends over.
    """

    weight_bits: int = 8
    kv_bytes_per_element: int = 2
    context: int = 2048

    def __post_init__(self) -> None:
        """Refuse bits that no weight has."""
        if self.weight_bits not in BITS_PER_WEIGHT:
            raise ConfigError(f"weights have {', '.join(map(str, BITS_PER_WEIGHT))} bits, not {self.weight_bits}")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan takes on a device.

    Attributes:
        weight_bytes: Stored weights.
        cache_bytes: Keys and values of a whole context.
        seconds_per_token: One token at the end of a whole context.
        loss: `loss_proxy`.
    """

    weight_bytes: float
    cache_bytes: float
    seconds_per_token: float
    loss: float

    @property
    def memory_bytes(self) -> float:
        """Weights and cache."""
        return self.weight_bytes + self.cache_bytes

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second at the end of a whole context."""
        return 1 / self.seconds_per_token


@dataclass(frozen=True, kw_only=True)
class FoundPlan:
    """What a search found.

    Attributes:
        shape: Name of the plan's shape.
        config: The plan.
        estimate: What it takes on the device.
    """

    shape: str
    config: ModelConfig
    estimate: Estimate


def estimate(config: ModelConfig, device: Device, deployment: Deployment) -> Estimate:
    """What a plan takes on a device, by the roofline model (Williams et al. 2009): the slower of reading and computing.

    A token reads every weight that it runs through, repeated layers again each time, and the cache of its context.
    """
    cost = plan_cost(config, context=deployment.context, kv_bytes_per_element=deployment.kv_bytes_per_element)
    bytes_per_weight = BITS_PER_WEIGHT[deployment.weight_bits] / 8
    read = cost.weights_run * bytes_per_weight + cost.kv_read_bytes * cost.context
    return Estimate(
        weight_bytes=cost.parameters * bytes_per_weight,
        cache_bytes=cost.kv_cache_bytes * cost.context,
        seconds_per_token=max(read / device.bandwidth, cost.flops / device.flops),
        loss=loss_proxy(cost),
    )


def find_plan(
    device: Device,
    deployment: Deployment,
    *,
    tokens_per_second: float,
    vocab_size: int = 32_000,
    shapes: Sequence[str] = tuple(SHAPES),
    repeats: int = 1,
    kv_span: int = 1,
) -> FoundPlan:
    """The plan with the lowest loss proxy that fits; of equal ones, the one with the fewest weights.

    Args:
        device: Where it runs.
        deployment: How it is stored and used.
        tokens_per_second: Wished speed of decoding at the end of a whole context.
        vocab_size: Rows of the embedding.
        shapes: Kinds of plans to look at.
        repeats: How often each layer's weights run.
        kv_span: How many layers may attend over one layer's keys and values.

    Raises:
        ConfigError: Nothing fits, or a shape is unknown.
    """
    needs = (device, deployment, tokens_per_second)
    fitting = [
        FoundPlan(shape=shape, config=plan, estimate=told)
        for shape in shapes
        for plan, told in _fitting(_plans(shape, vocab_size, deployment.context, repeats, kv_span), *needs)
    ]
    if not fitting:
        raise ConfigError(
            f"no plan fits {device.memory_bytes / 1e6:,.0f} MB at {tokens_per_second:g} tokens a second; allow more "
            "memory or a slower speed, or take fewer bits, a smaller vocabulary or a shorter context"
        )
    return min(fitting, key=lambda found: (found.estimate.loss, found.estimate.weight_bytes))


def _plans(shape: str, vocab_size: int, context: int, repeats: int, kv_span: int) -> Iterator[Iterator[ModelConfig]]:
    """The space of one shape as series that grow deeper and otherwise stay as they are."""
    usual = shape_named(shape).ffn_multiplier
    for model_dim, stretch in itertools.product(WIDTHS, _FFN_STRETCHES):
        sizes = (Size(num_layers=depth, model_dim=model_dim, ffn_multiplier=usual * stretch) for depth in _DEPTHS)
        plans = (plan_of(shape, size, vocab_size=vocab_size, max_context=context) for size in sizes)
        yield (with_shared_kv(with_repeated_layers(plan, repeats), kv_span) for plan in plans)


def _fitting(
    series: Iterable[Iterable[ModelConfig]], device: Device, deployment: Deployment, tokens_per_second: float
) -> Iterator[tuple[ModelConfig, Estimate]]:
    for plans in series:
        for plan in plans:
            told = estimate(plan, device, deployment)
            if told.memory_bytes > device.memory_bytes or told.tokens_per_second < tokens_per_second:
                break  # a deeper one takes more of both
            yield plan, told
