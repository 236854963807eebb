"""Plans: makers, arithmetic, the loss proxy and the search."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from model import PRESETS, ConfigError, KVCache, LayeredTransformer, ModelConfig, preset
from model.plans import (
    SHAPES,
    Deployment,
    Device,
    Size,
    best_depth,
    estimate,
    find_plan,
    loss_proxy,
    make_plan,
    plan_cost,
    plan_of,
    with_repeated_layers,
    with_shared_kv,
)
from model.plans.openelm import evenly_spaced, nearest_multiple

PLANS = {
    **{name: preset(name) for name in PRESETS},
    "untied": dataclasses.replace(preset("tiny-pyramid"), tied_embeddings=False),
    "repeated": with_repeated_layers(preset("tiny-pyramid"), 2),
    "repeated and shared": with_shared_kv(with_repeated_layers(preset("tiny-pyramid"), 2), 2),
    "shared": with_shared_kv(preset("openelm-270m"), 2),
}


@pytest.mark.parametrize("name", sorted(PLANS))
def test_the_arithmetic_is_that_of_the_stored_tensors(name: str) -> None:
    config = PLANS[name]
    cost = plan_cost(config, kv_bytes_per_element=1)
    assert cost.parameters == config.parameter_count
    assert cost.kv_cache_bytes == config.kv_cache_elements()
    stored = dict.fromkeys(range(config.num_layers), 0)
    for path, shape in config.parameter_shapes().items():
        if path.startswith("layers."):
            stored[int(path.split(".")[1])] += torch.Size(shape).numel()
    assert [layer.parameters for layer in cost.layers] == list(stored.values())


@pytest.mark.parametrize("name", ["tiny-pyramid", "untied", "repeated", "repeated and shared"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    """One more token after 31 in the cache."""
    config = PLANS[name]
    model = LayeredTransformer(config).eval()
    cache = KVCache(config, batch_size=1, max_length=32)
    with torch.no_grad():
        model(torch.zeros(1, 31, dtype=torch.int64), cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, dtype=torch.int64), cache)
    expected = plan_cost(config, context=32).flops
    # torch's counter knows attention by several kernels, some of which it does not see on a CPU.
    attention = sum(4 * 32 * heads * config.head_dim for heads in config.query_heads)
    assert counter.get_total_flops() in {expected, expected - attention}


def test_cache_bytes_of_a_real_cache() -> None:
    for name in ("tiny-pyramid", "repeated and shared"):
        config = PLANS[name]
        cache = KVCache(config, batch_size=3, max_length=10, dtype=torch.float16)
        assert cache.num_bytes == 3 * 10 * plan_cost(config, kv_bytes_per_element=2).kv_cache_bytes


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("parameters", [5_000_000, 30_000_000, 135_000_000, 270_000_000, 1_100_000_000, 3_000_000_000])
def test_a_made_plan_has_the_wished_parameters(shape: str, parameters: int) -> None:
    vocab_size = 32_000 if parameters > 20_000_000 else 4096
    config = make_plan(shape, parameters, vocab_size=vocab_size)
    assert abs(config.parameter_count / parameters - 1) <= 0.01
    assert config == make_plan(shape, parameters, vocab_size=vocab_size)
    heads, ffns = list(config.query_heads), list(config.ffn_dims)
    if shape == "uniform":
        assert len(set(heads)) == len(set(ffns)) == 1
    else:
        assert heads == sorted(heads, reverse=shape == "pyramid")
        assert ffns == sorted(ffns, reverse=shape == "pyramid")
        assert heads[0] != heads[-1]


def test_openelm_plans_of_published_sizes_have_their_proportions() -> None:
    for name, parameters in (("openelm-270m", 271_527_168), ("openelm-450m", 457_179_136)):
        config = make_plan("openelm", parameters)
        assert config == preset(name)


def test_the_pyramid_falls_exponentially() -> None:
    config = plan_of(
        "pyramid", Size(num_layers=13, model_dim=4096, ffn_multiplier=4.0), vocab_size=32_000, max_context=2048
    )
    for layer, (heads, ffn_dim) in enumerate(zip(config.query_heads, config.ffn_dims, strict=True)):
        share = 0.25 ** (layer / 12)
        assert abs(heads - 32 * share) <= 2  # half a group of four
        assert abs(ffn_dim - 16384 * share) <= 32
    assert (config.query_heads[0], config.query_heads[-1]) == (32, 8)


def test_depth_and_width_can_be_bound() -> None:
    config = make_plan("uniform", 135_000_000, num_layers=30, model_dim=576, vocab_size=49_152)
    assert (config.num_layers, config.model_dim) == (30, 576)
    assert abs(config.parameter_count / 135e6 - 1) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cube", 1_000_000), "there are openelm, pyramid, uniform"),
        (("uniform", 1000), "no uniform plan has about 1,000 parameters"),
        (("pyramid", 10**14), "no pyramid plan"),
    ],
)
def test_impossible_wishes_are_told(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(*arguments)


@pytest.mark.parametrize(
    ("value", "multiple", "expected"),
    [(640, 256, 768), (639, 256, 512 + 256), (896, 256, 1024), (895, 256, 1024), (128, 256, 256), (1, 64, 64),
     (1152.0, 256, 1280), (1151, 256, 1280), (1400, 256, 1280), (96, 64, 128), (95, 64, 128), (3.0, 2, 4)],
)  # fmt: skip
def test_rounding_takes_halves_up_and_never_loses_a_tenth(value: float, multiple: int, expected: int) -> None:
    assert nearest_multiple(value, multiple) == expected


@given(value=st.floats(1, 1e6), multiple=st.integers(1, 1024))
def test_rounding_stays_near(value: float, multiple: int) -> None:
    rounded = nearest_multiple(value, multiple)
    assert rounded % multiple == 0
    assert 0.9 * value <= rounded < value + 1.5 * multiple


def test_multipliers_are_even_and_have_two_digits() -> None:
    assert evenly_spaced(0.5, 1.0, 16)[:4] == (0.5, 0.53, 0.57, 0.6)
    assert evenly_spaced(0.5, 4.0, 1) == (0.5,)


def test_repeated_layers_store_no_more() -> None:
    base = preset("openelm-270m")
    twice = with_repeated_layers(base, 2)
    assert twice.num_layers == 32
    assert twice.parameter_count == base.parameter_count
    assert twice.weights_of[:4] == (0, 0, 2, 2)
    assert with_repeated_layers(base, 1) == base
    cost = plan_cost(twice)
    assert cost.layers[1].parameters == 0
    assert cost.weights_run == 2 * (plan_cost(base).weights_run - 1280 * 32_001) + 1280 * 32_001


def test_shared_kv_halves_the_cache_of_a_uniform_plan() -> None:
    base = preset("smollm2-135m")
    shared = with_shared_kv(base, 2)
    assert shared.kv_of[:5] == (0, 0, 2, 2, 4)
    assert plan_cost(shared).kv_cache_bytes * 2 == plan_cost(base).kv_cache_bytes
    assert plan_cost(shared).kv_read_bytes == plan_cost(base).kv_read_bytes
    assert shared.parameter_count == base.parameter_count - 15 * 2 * 576 * 192


@given(heads=st.lists(st.integers(1, 3), min_size=1, max_size=8), repeats=st.integers(1, 3), span=st.integers(1, 4))
def test_sharing_makes_a_sound_plan_or_says_why_not(heads: list[int], repeats: int, span: int) -> None:
    base = ModelConfig(
        vocab_size=8, model_dim=8, head_dim=4, query_heads=tuple(heads), kv_heads=tuple(heads),
        ffn_dims=(8,) * len(heads), max_context=8,
    )  # fmt: skip
    repeated = with_repeated_layers(base, repeats)
    try:
        config = with_shared_kv(repeated, span)
    except ConfigError:
        assert span % repeats
        return
    assert plan_cost(config).parameters == config.parameter_count
    assert torch.isfinite(LayeredTransformer(config)(torch.zeros(1, 2, dtype=torch.int64))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: with_repeated_layers(c, 0), "once or more"),
        (lambda c: with_shared_kv(c, 0), "one layer or more"),
        (lambda c: with_repeated_layers(with_repeated_layers(c, 2), 2), "shares"),
        (lambda c: with_shared_kv(with_shared_kv(dataclasses.replace(c, kv_heads=(1,) * 4), 2), 2), "shares"),
    ],
)
def test_impossible_sharing_is_told(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make(preset("tiny-pyramid"))


def test_the_loss_proxy_knows_size_depth_and_data() -> None:
    losses = [loss_proxy(plan_cost(preset(f"openelm-{size}"))) for size in ("270m", "450m", "1.1b", "3b")]
    assert losses == sorted(losses, reverse=True)
    assert all(1.8 < loss < 3 for loss in losses)
    cost = plan_cost(preset("openelm-270m"))
    assert loss_proxy(cost, training_tokens=1e11) > loss_proxy(cost)

    def at(depth: int, width: int) -> float:
        """As Kaplan et al. compare them: the same number of weights, spread differently."""
        flat = dataclasses.replace(cost, model_dim=width, layers=cost.layers[:1] * depth)
        return loss_proxy(flat)

    assert at(6, 4288) / at(48, 1600) == pytest.approx(1.03, abs=0.002)
    assert best_depth(12_288) == pytest.approx(79, abs=1)  # Levine et al.: GPT-3's 96 are too many
    assert best_depth(2) == 1


DEVICE = Device(memory_bytes=300e6)
TWO_SHAPES = ("uniform", "pyramid")


def fits(told, device: Device, speed: float) -> bool:
    return told.memory_bytes <= device.memory_bytes and told.tokens_per_second >= speed


@pytest.mark.slow
def test_a_found_plan_fits_and_beats_naive_ones() -> None:
    deployment, speed = Deployment(weight_bits=8), 30.0
    found = find_plan(DEVICE, deployment, tokens_per_second=speed, shapes=TWO_SHAPES)
    assert fits(found.estimate, DEVICE, speed)
    assert found.estimate == estimate(found.config, DEVICE, deployment)
    assert found == find_plan(DEVICE, deployment, tokens_per_second=speed, shapes=TWO_SHAPES)

    naive = [preset("smollm2-135m"), *(make_plan("uniform", n * 10**6) for n in (100, 150, 200, 220))]
    fitting = [told for told in (estimate(config, DEVICE, deployment) for config in naive) if fits(told, DEVICE, speed)]
    assert len(fitting) >= 3
    assert all(found.estimate.loss < told.loss for told in fitting)


@pytest.mark.slow
def test_a_larger_budget_is_never_worse() -> None:
    def loss(memory: float, speed: float, bits: int = 8) -> float:
        device, deployment = Device(memory_bytes=memory), Deployment(weight_bits=bits)
        return find_plan(device, deployment, tokens_per_second=speed, shapes=("openelm",)).estimate.loss

    by_memory = [loss(memory, 1.0) for memory in (60e6, 100e6, 200e6, 400e6)]
    assert by_memory == sorted(by_memory, reverse=True)
    assert len(set(by_memory)) == 4
    by_speed = [loss(400e6, speed) for speed in (200.0, 60.0, 30.0)]
    assert by_speed == sorted(by_speed, reverse=True)
    assert len(set(by_speed)) == 3
    assert loss(200e6, 1.0, bits=4) < loss(200e6, 1.0)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_deeper_plan_takes_more_of_everything(shape: str) -> None:
    """The search stops going deeper at the first plan that does not fit."""
    for width, ffn_multiplier in itertools.product((128, 512, 2048), (1.5, 4.0)):
        sizes = [Size(num_layers=depth, model_dim=width, ffn_multiplier=ffn_multiplier) for depth in range(4, 65, 2)]
        told = [
            estimate(plan_of(shape, size, vocab_size=1000, max_context=2048), DEVICE, Deployment()) for size in sizes
        ]
        for shallow, deep in itertools.pairwise(told):
            assert shallow.memory_bytes < deep.memory_bytes
            assert shallow.seconds_per_token < deep.seconds_per_token


def test_sharing_can_be_asked_of_a_search() -> None:
    found = find_plan(
        Device(memory_bytes=80e6), Deployment(), tokens_per_second=10, shapes=("uniform",), repeats=2, kv_span=2
    )
    assert found.config.weights_of[:4] == (0, 0, 2, 2)
    assert found.config.kv_of == found.config.weights_of


def test_a_roofline_is_the_slower_of_reading_and_computing() -> None:
    config, deployment = preset("openelm-270m"), Deployment(weight_bits=16, context=1)
    reading = estimate(config, Device(memory_bytes=1e9, bandwidth=1e9, flops=1e15), deployment)
    cost = plan_cost(config, context=1)
    assert reading.seconds_per_token == pytest.approx((2 * cost.weights_run + cost.kv_read_bytes) / 1e9)
    computing = estimate(config, Device(memory_bytes=1e9, bandwidth=1e15, flops=1e9), deployment)
    assert computing.seconds_per_token == pytest.approx(cost.flops / 1e9)
    assert reading.weight_bytes == 2 * config.parameter_count


@settings(max_examples=20)
@given(memory=st.floats(1e4, 3e6))
def test_nothing_fits_is_said_with_a_remedy(memory: float) -> None:
    with pytest.raises(ConfigError, match="allow more memory or a slower speed"):
        find_plan(Device(memory_bytes=memory), Deployment(), tokens_per_second=1, shapes=("uniform",))


@pytest.mark.parametrize("change", [{"memory_bytes": 0}, {"memory_bytes": 1e9, "bandwidth": -1}])
def test_impossible_devices_are_refused(change) -> None:
    with pytest.raises(ConfigError, match="positive"):
        Device(**change)
    with pytest.raises(ConfigError, match="bits"):
        Deployment(weight_bits=5)
