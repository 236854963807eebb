"""Per-example gradients by hooks on our modules equal those of one backward pass an example."""

import pytest
import torch

from model import (
    PROJECTIONS,
    EncodedExample,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    adapter_shapes,
    add_lora,
    load_adapter_state,
    sequence_losses,
)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_hooks_see_every_adapter_weight(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    lora = LoRAConfig(rank=3, targets=PROJECTIONS)
    add_lora(tiny_model, lora)
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(s, generator=generator) * 0.1 for n, s in adapter_shapes(config, lora).items()}
    load_adapter_state(tiny_model, state)
    batch = [EncodedExample(tuple(range(3, 3 + n)), n // 2) for n in (4, 20, 11)]
    trainable = [p for p in tiny_model.parameters() if p.requires_grad]
    expected = [torch.autograd.grad(sequence_losses(tiny_model, [example])[0], trainable) for example in batch]

    hooks = GradSampleHooks(tiny_model.train(), loss_reduction="sum")
    sequence_losses(tiny_model, batch).sum().backward()

    assert len(trainable) == 2 * 7 * config.num_layers
    for index, parameter in enumerate(trainable):
        by_loop = torch.stack([gradients[index] for gradients in expected])
        torch.testing.assert_close(parameter.grad_sample, by_loop, atol=1e-5, rtol=1e-4)
    hooks.cleanup()
