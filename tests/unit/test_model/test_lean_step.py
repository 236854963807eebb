"""The lean step against the plain one: the same losses, the same gradients, less to keep."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from model import (
    PROJECTIONS,
    ContextLengthError,
    DataError,
    EncodedExample,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    adapter_shapes,
    adapter_state_dict,
    add_lora,
    load_adapter_state,
    merge_lora,
    remove_lora,
    sequence_losses,
    train,
)
from model.quantization import quantize_model, set_int8_inputs, uniform_plan
from model.training import StepCost, has_fast_bfloat16, is_lean, lean_sequence_losses
from model.training import loop as loop_module
from model.training.lean import kernels, losses, precision

LENGTHS = (5, 30, 12, 3, 21, 9, 2, 30, 60)
Gradients = list[torch.Tensor]


@pytest.fixture
def batch() -> list[EncodedExample]:
    generator = torch.Generator().manual_seed(0)
    return [
        EncodedExample(tuple(torch.randint(3, 260, (n,), generator=generator).tolist()), max(1, n // 3))
        for n in LENGTHS
    ]


def adapted(model: LayeredTransformer, lora: LoRAConfig) -> LayeredTransformer:
    add_lora(model, lora)
    generator = torch.Generator().manual_seed(1)
    shapes = adapter_shapes(model.config, lora)
    load_adapter_state(model, {n: torch.randn(s, generator=generator) * 0.1 for n, s in shapes.items()})
    return model


def gradients(model: LayeredTransformer, loss: torch.Tensor) -> Gradients:
    """Of the losses, each with a weight of its own, so that an exchange of two examples shows."""
    weights = torch.linspace(0.5, 1.5, len(loss))
    return list(torch.autograd.grad((loss * weights).sum(), [p for p in model.parameters() if p.requires_grad]))


def assert_like_plain(model: LayeredTransformer, batch: list[EncodedExample], **options: object) -> None:
    plain, lean = sequence_losses(model, batch), lean_sequence_losses(model, batch, **options)
    torch.testing.assert_close(lean, plain, atol=1e-5, rtol=1e-5)
    for found, expected in zip(gradients(model, lean), gradients(model, plain), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "v_proj"), ("down_proj",)])
def test_losses_and_gradients_are_those_of_the_plain_step(
    tiny_model: LayeredTransformer, batch: list[EncodedExample], targets: tuple[str, ...], checkpointing: str
) -> None:
    adapted(tiny_model, LoRAConfig(rank=3, targets=targets))
    assert_like_plain(tiny_model, batch, cost=StepCost(checkpointing=checkpointing))


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": False, "tied_embeddings": False},
        {"query_heads": (4, 4, 2), "kv_heads": (2, 2, 1), "ffn_dims": (32, 32, 16), "weights_of": (0, 0, 2)},
        {"query_heads": (4, 2, 2), "kv_heads": (2, 2, 2), "kv_of": (0, 0, 0)},
    ],
    ids=["untied", "shared weights", "shared keys and values"],
)
def test_every_kind_of_plan(config: ModelConfig, batch: list[EncodedExample], changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = LayeredTransformer(dataclasses.replace(config, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    adapted(model, LoRAConfig(rank=2, targets=PROJECTIONS))
    for checkpointing in ("none", "blocks"):
        assert_like_plain(model, batch, cost=StepCost(checkpointing=checkpointing))
    assert_per_example(model, batch)
    for parameter in model.parameters():
        parameter.grad = parameter.grad_sample = None
    assert_per_example(model, equally_long(batch))


def test_blocks_of_queries_and_of_logits(
    tiny_model: LayeredTransformer, batch: list[EncodedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_FUSED_LONGEST", 20)
    monkeypatch.setattr(kernels, "_QUERY_BLOCK", 7)
    monkeypatch.setattr(losses, "_ROWS", 5)
    monkeypatch.setattr(losses, "_TOKENS", 100)
    assert_like_plain(adapted(tiny_model, LoRAConfig(rank=2, targets=PROJECTIONS)), batch)


def equally_long(batch: list[EncodedExample]) -> list[EncodedExample]:
    return [dataclasses.replace(batch[-1], loss_start=start) for start in (1, 20, 58)]


def test_equally_long_sequences(tiny_model: LayeredTransformer, batch: list[EncodedExample]) -> None:
    assert_like_plain(adapted(tiny_model, LoRAConfig(rank=2, targets=PROJECTIONS)), equally_long(batch))


def test_without_onednn(
    tiny_model: LayeredTransformer, batch: list[EncodedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_has_onednn", lambda _: False)
    assert_like_plain(adapted(tiny_model, LoRAConfig(rank=2, targets=PROJECTIONS)), batch)


def assert_per_example(model: LayeredTransformer, batch: list[EncodedExample]) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    lean_sequence_losses(model, batch, per_example=True).sum().backward()
    for index, example in enumerate(batch):
        alone = torch.autograd.grad(sequence_losses(model, [example])[0], trainable)
        for parameter, expected in zip(trainable, alone, strict=True):
            torch.testing.assert_close(parameter.grad_sample[index], expected, atol=2e-5, rtol=1e-4)
    for parameter in trainable:
        torch.testing.assert_close(parameter.grad_sample.sum(0), parameter.grad, atol=1e-4, rtol=1e-4)


def test_each_example_has_its_own_gradient(tiny_model: LayeredTransformer, batch: list[EncodedExample]) -> None:
    assert_per_example(adapted(tiny_model, LoRAConfig(rank=3, targets=PROJECTIONS)), batch)


def test_bfloat16_is_near(tiny_model: LayeredTransformer, batch: list[EncodedExample]) -> None:
    """Products carry 8 bits, and so relative errors of about 2^-8 each; a dozen of them add up here."""
    adapted(tiny_model, LoRAConfig(rank=3, targets=PROJECTIONS))
    plain = sequence_losses(tiny_model, batch)
    lean = lean_sequence_losses(tiny_model, batch, cost=StepCost(precision="bfloat16"))
    torch.testing.assert_close(lean, plain, atol=0.1, rtol=0.02)
    wide, narrow = (torch.cat([g.flatten() for g in gradients(tiny_model, loss)]) for loss in (plain, lean))
    assert torch.cosine_similarity(wide, narrow, dim=0) > 0.99
    assert lean.dtype == torch.float32


def test_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_f": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        has_fast_bfloat16.cache_clear()
        assert precision.compute_dtype("bfloat16") == expected
        assert precision.compute_dtype("float32") == torch.float32
    has_fast_bfloat16.cache_clear()


@contextmanager
def kept(model: LayeredTransformer) -> Iterator[dict[int, int]]:
    """The bytes of every storage that is kept for the backward pass, apart from the weights."""
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


def kept_bytes(model: LayeredTransformer, batch: list[EncodedExample], **options: object) -> int:
    with kept(model) as storages:
        loss = lean_sequence_losses(model, batch, **options)
    assert loss.requires_grad  # and so the graph was alive while its storages were counted
    return sum(storages.values())


def test_what_is_kept(tiny_model: LayeredTransformer, batch: list[EncodedExample], config: ModelConfig) -> None:
    adapted(tiny_model, LoRAConfig(rank=2, targets=PROJECTIONS))
    with kept(tiny_model) as plain:
        loss = sequence_losses(tiny_model, batch)
    assert loss.requires_grad
    blocks = kept_bytes(tiny_model, batch, cost=StepCost(checkpointing="blocks"))
    lean = kept_bytes(tiny_model, batch)
    assert lean < 0.4 * sum(plain.values())
    assert blocks < 0.5 * lean


def test_nothing_is_kept_below_the_first_adapted_layer(
    tiny_model: LayeredTransformer, batch: list[EncodedExample]
) -> None:
    seen = []
    for layers in ((), (1, 2), (2,)):
        adapted(tiny_model, LoRAConfig(rank=2, targets=PROJECTIONS, layers=layers))
        assert_like_plain(tiny_model, batch)
        seen.append(kept_bytes(tiny_model, batch))
        remove_lora(tiny_model)
    assert seen[0] > 1.4 * seen[1] > 1.4 * 1.4 * seen[2]


def test_what_is_not_lean(tiny_model: LayeredTransformer, batch: list[EncodedExample]) -> None:
    assert not is_lean(tiny_model)  # every weight is trainable
    add_lora(tiny_model, LoRAConfig(rank=2, dropout=0.1))
    assert not is_lean(tiny_model)
    remove_lora(tiny_model)
    adapted(tiny_model, LoRAConfig(rank=2))
    assert is_lean(tiny_model)
    merge_lora(tiny_model)
    with torch.no_grad():
        torch.testing.assert_close(lean_sequence_losses(tiny_model, batch), sequence_losses(tiny_model, batch))


def test_bad_batches(tiny_model: LayeredTransformer) -> None:
    with pytest.raises(DataError, match="empty batch"):
        lean_sequence_losses(tiny_model, [])
    with pytest.raises(ContextLengthError, match="65 tokens"):
        lean_sequence_losses(tiny_model, [EncodedExample(tuple(range(66)), 3)])


@pytest.fixture
def curves(
    tiny_model: LayeredTransformer, batch: list[EncodedExample], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, tuple[list[float], torch.Tensor]]]:
    """Losses and final adapter of 30 steps from the same start."""
    results = {}
    for name, cost in (("plain", None), ("lean", None), ("blocks", StepCost(checkpointing="blocks"))):
        adapted(tiny_model, LoRAConfig(rank=2, targets=PROJECTIONS))
        seen: list[float] = []
        with monkeypatch.context() as patch:
            if name == "plain":
                patch.setattr(loop_module, "is_lean", lambda _: False)
            options = {"steps": 30, "batch_size": 4, "learning_rate": 1e-2, "seed": 0}
            train(tiny_model, batch, **options, cost=cost, on_step=lambda _, loss, seen=seen: seen.append(loss))
        weights = torch.cat([t.flatten() for t in adapter_state_dict(tiny_model).values()])
        results[name] = (seen, weights.clone())
        remove_lora(tiny_model)
    return results


@pytest.mark.slow
def test_the_loss_curve_is_the_same(curves: dict[str, tuple[list[float], torch.Tensor]]) -> None:
    plain, weights = curves["plain"]
    assert plain[-1] < plain[0] - 0.5
    for name in ("lean", "blocks"):
        assert curves[name][0] == pytest.approx(plain, abs=2e-3)
        torch.testing.assert_close(curves[name][1], weights, atol=5e-3, rtol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_on_a_quantised_base(tiny_model: LayeredTransformer, batch: list[EncodedExample], bits: int) -> None:
    quantize_model(tiny_model, uniform_plan(tiny_model.config, bits=bits, group_size=8))
    adapted(tiny_model, LoRAConfig(rank=2, targets=("q_proj", "v_proj", "down_proj")))
    assert is_lean(tiny_model)
    assert_like_plain(tiny_model, batch)
    remove_lora(tiny_model)
    set_int8_inputs(tiny_model, enabled=True)
    add_lora(tiny_model, LoRAConfig(rank=2))
    assert not is_lean(tiny_model)
