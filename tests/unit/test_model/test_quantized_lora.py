"""Adapters on a quantised base: they train, and every gradient is the one of the dense twin of that base."""

import pytest
import torch

from model import (
    PROJECTIONS,
    EncodedExample,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    adapter_shapes,
    adapter_state_dict,
    add_lora,
    load_adapter_state,
    merge_lora,
    quantize_model,
    remove_lora,
    sequence_losses,
    train,
    uniform_plan,
    unmerge_lora,
)
from model.quantization import QuantizedLinear, dense_state
from privacy.dp_sgd import DPSGDParameters, train_dp_sgd

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
LORA = LoRAConfig(rank=3, targets=PROJECTIONS)
BATCH = [EncodedExample(tuple(range(3, 3 + n)), n // 2) for n in (4, 20, 11)]


@pytest.fixture(params=[{"bits": 8}, {"bits": 4}, {"bits": 4, "scale_bits": 8}])
def bases(
    request, tiny_model: LayeredTransformer, config: ModelConfig
) -> tuple[LayeredTransformer, LayeredTransformer]:
    """A quantised model and its dense twin, with the same adapter."""
    quantize_model(tiny_model, uniform_plan(config, group_size=8, **request.param))
    twin = LayeredTransformer(config).eval()
    twin.load_state_dict(dense_state(tiny_model))
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(s, generator=generator) * 0.1 for n, s in adapter_shapes(config, LORA).items()}
    for model in (tiny_model, twin):
        add_lora(model, LORA)
        load_adapter_state(model, state)
    return tiny_model, twin


def test_only_the_adapter_is_trainable(bases) -> None:
    quantized, _ = bases
    trainable = [name for name, p in quantized.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * quantized.config.num_layers
    assert all(".lora_" in name for name in trainable)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_per_example_gradients_are_those_of_the_dense_base(bases) -> None:
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    found = []
    for model in bases:
        hooks = GradSampleHooks(model.train(), loss_reduction="sum")
        sequence_losses(model, BATCH).sum().backward()
        found.append([p.grad_sample for p in model.parameters() if p.requires_grad])
        hooks.cleanup()
    _, dense = bases
    loop = [
        torch.autograd.grad(
            sequence_losses(dense.eval(), [example])[0], [p for p in dense.parameters() if p.requires_grad]
        )
        for example in BATCH
    ]
    for index, (ours, theirs) in enumerate(zip(*found, strict=True)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours, torch.stack([gradients[index] for gradients in loop]), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_private_training_takes_the_same_steps(bases) -> None:
    parameters = DPSGDParameters(
        noise_multiplier=0.5, clipping_norm=1.0, steps=3, sampling_probability=0.9, expected_batch_size=3
    )
    for model in bases:
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.1)
        train_dp_sgd(model, BATCH, loss_of=sequence_losses, optimizer=optimizer, parameters=parameters, seed=1)
    ours, theirs = (adapter_state_dict(model) for model in bases)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=1e-3)


def test_training_lowers_the_loss_and_leaves_the_base_alone(bases) -> None:
    quantized, _ = bases
    base = {name: buffer.clone() for name, buffer in quantized.named_buffers()}
    before = float(sequence_losses(quantized, BATCH).detach().mean())
    train(quantized, BATCH, steps=10, batch_size=3, learning_rate=1e-2, seed=0)
    assert float(sequence_losses(quantized.eval(), BATCH).detach().mean()) < before - 0.1
    assert all(torch.equal(buffer, base[name]) for name, buffer in quantized.named_buffers())


@torch.no_grad()
def test_merging_is_undone_bit_for_bit(bases) -> None:
    quantized, twin = bases
    with_adapter = quantized(TOKENS)
    torch.testing.assert_close(with_adapter, twin(TOKENS), atol=1e-4, rtol=1e-4)
    merge_lora(quantized)
    torch.testing.assert_close(quantized(TOKENS), with_adapter, atol=1e-4, rtol=1e-4)
    unmerge_lora(quantized)
    assert torch.equal(quantized(TOKENS), with_adapter)
    merge_lora(quantized)
    remove_lora(quantized)
    assert isinstance(quantized.get_submodule("layers.0.attention.q_proj"), QuantizedLinear)
    remove_lora(twin)
    torch.testing.assert_close(quantized(TOKENS), twin(TOKENS), atol=1e-4, rtol=1e-4)
