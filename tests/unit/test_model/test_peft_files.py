import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch

from model import (
    PROJECTIONS,
    AdapterError,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    Tokenizer,
    adapter_shapes,
    add_lora,
    import_huggingface,
    load_adapter,
    load_adapter_state,
    load_checkpoint,
    save_adapter,
)

LORA = LoRAConfig(rank=4, alpha=6, dropout=0.1, targets=PROJECTIONS)
Twins = tuple[torch.nn.Module, LayeredTransformer]

# Raised inside transformers when peft asks it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def random_state(config: ModelConfig, lora: LoRAConfig = LORA) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator) * 0.1 for n, s in adapter_shapes(config, lora).items()}


@pytest.fixture
def twins(tmp_path: Path, byte_tokenizer: Tokenizer) -> Twins:
    """The same random tiny Llama twice: as transformers' model and as ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=260, num_key_value_heads=2, max_position_embeddings=64, **shape))
    theirs.save_pretrained(tmp_path / "hf")
    byte_tokenizer.save(tmp_path / "hf")
    import_huggingface(tmp_path / "hf", tmp_path / "ours", dtype=torch.float32)
    ours: LayeredTransformer = load_checkpoint(tmp_path / "ours")
    return theirs.eval(), ours


@pytest.mark.slow
@torch.no_grad()
def test_peft_loads_ours_with_the_same_logits(twins: Twins, tmp_path: Path) -> None:
    from peft import PeftModel

    theirs, ours = twins
    state = random_state(ours.config)
    add_lora(ours, LORA)
    load_adapter_state(ours, state)
    base = theirs(TOKENS).logits
    save_adapter(tmp_path / "adapter", state, LORA, dtype=torch.float32)

    with warnings.catch_warnings():
        # A key that PEFT does not know would only be a warning.
        warnings.simplefilter("error", UserWarning)
        adapted = PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()

    expected = adapted(TOKENS).logits
    assert (expected - base).abs().max() > 1e-2
    torch.testing.assert_close(ours.eval()(TOKENS), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_ours_loads_peft_with_the_same_logits(twins: Twins, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    theirs, ours = twins
    targets = ["q_proj", "v_proj", "down_proj"]
    peft_config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(theirs, peft_config).eval()
    adapted.save_pretrained(tmp_path / "adapter")

    state, lora = load_adapter(tmp_path / "adapter")
    add_lora(ours, lora)
    base = ours(TOKENS)
    load_adapter_state(ours, state)

    assert lora == LoRAConfig(rank=4, alpha=6, targets=("q_proj", "v_proj", "down_proj"))
    torch.testing.assert_close(ours.eval()(TOKENS), adapted(TOKENS).logits, atol=1e-4, rtol=0)
    assert (ours(TOKENS) - base).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(("chosen", "layers"), [([1], (1,)), (0, (0,)), ([0, 1], (0, 1))])
def test_an_adapter_on_some_layers_goes_both_ways(
    twins: Twins, tmp_path: Path, chosen: int | list[int], layers: tuple[int, ...]
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    theirs, ours = twins
    peft_config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], layers_to_transform=chosen, layers_pattern="layers",
        init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(theirs, peft_config).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    expected = adapted(TOKENS).logits

    state, lora = load_adapter(tmp_path / "theirs")
    assert lora == LoRAConfig(rank=4, alpha=6, targets=("q_proj", "up_proj"), layers=layers)
    add_lora(ours, lora)
    load_adapter_state(ours, state)
    torch.testing.assert_close(ours.eval()(TOKENS), expected, atol=1e-4, rtol=0)

    save_adapter(tmp_path / "ours", state, lora, dtype=torch.float32)
    assert load_adapter(tmp_path / "ours")[1] == lora
    back = PeftModel.from_pretrained(adapted.unload(), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(back(TOKENS).logits, expected, atol=1e-5, rtol=0)


def test_round_trip_and_same_bytes(tmp_path: Path, config: ModelConfig) -> None:
    state = random_state(config)
    for name in ("a", "b"):
        save_adapter(tmp_path / name, state, LORA)
    loaded, lora = load_adapter(tmp_path / "a")

    assert lora == LORA
    assert {name: t.dtype for name, t in loaded.items()} == dict.fromkeys(state, torch.float16)
    assert all(torch.equal(loaded[name], state[name].half()) for name in state)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"invented_next_year": 3}, "invented_next_year"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"target_modules": ".*proj"}, "list"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"r": "8"}, "rank"),
        ({"lora_alpha": None}, "alpha"),
    ],
)
def test_adapters_that_would_compute_something_else_are_refused(
    tmp_path: Path, config: ModelConfig, change: dict[str, object], message: str
) -> None:
    save_adapter(tmp_path, random_state(config), LORA)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        load_adapter(tmp_path)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_and_damaged_files_are_adapter_errors(tmp_path: Path, config: ModelConfig, file: str) -> None:
    save_adapter(tmp_path, random_state(config), LORA)
    (tmp_path / file).write_bytes(b"[1")
    with pytest.raises(AdapterError, match="cannot be used"):
        load_adapter(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(AdapterError, match="cannot read"):
        load_adapter(tmp_path)


def test_values_that_overflow_the_dtype_are_not_written(tmp_path: Path, config: ModelConfig) -> None:
    state = random_state(config)
    state["layers.0.attention.q_proj.lora_a"][0, 0] = 1e6
    with pytest.raises(AdapterError, match=r"not finite in torch\.float16"):
        save_adapter(tmp_path / "adapter", state, LORA)
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(AdapterError, match="no adapter tensor"):
        save_adapter(tmp_path / "adapter", {"surprise": torch.zeros(1)}, LORA)


def test_an_adapter_of_another_base_does_not_fit(tmp_path: Path, config: ModelConfig) -> None:
    save_adapter(tmp_path, random_state(config), LORA)
    state, lora = load_adapter(tmp_path)
    other = LayeredTransformer(dataclasses.replace(config, ffn_dims=(32, 24, 24)))
    add_lora(other, lora)
    with pytest.raises(AdapterError, match="this base"):
        load_adapter_state(other, state)
