"""The self-test and the runtime on real (tiny) models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from simulators.models import write_adapter_version, write_base_version
from simulators.versions import manifest_of

from client_sdk.device_config import SelfTestLimits
from client_sdk.disk import LocalDisk
from client_sdk.errors import ConfigurationError, DeviceError, NothingInstalledError, SelfTestError
from client_sdk.health import self_test
from client_sdk.runtime import Runtime
from client_sdk.slots import TREE, SlotStore
from delta_updates import VersionManifest, apply_package, build_package
from model import generate, load_version
from model.probe import LOGITS_FACT, describe_logits, probe_logits

GREEDY = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": None}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_version(tmp_path_factory.mktemp("models") / "v1")


@pytest.fixture(scope="module")
def adapted(base: Path) -> Path:
    return write_adapter_version(base, base.parent / "v2")


def spoil(tree: Path, name: str, value: float) -> None:
    path = tree / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, path, metadata={"format": "pt"})


def install(slots: SlotStore, tree: Path, version: int) -> VersionManifest:
    package = tree.parent / f"{version}.lmpkg"
    build_package(None, tree, package)
    slot, folder = slots.prepare()
    manifest = manifest_of(tree, version=version)
    apply_package(None, package, folder / TREE, expected_target_hash=manifest.tree_hash)
    slots.begin_test(slot, manifest, f"o{version}")
    slots.confirm()
    return manifest


def test_good_versions_pass(base: Path, adapted: Path) -> None:
    self_test(base, manifest_of(base, version=1))
    self_test(adapted, manifest_of(adapted, version=2))


def test_the_logits_it_was_signed_with_must_come_out(base: Path, adapted: Path) -> None:
    signed = describe_logits(probe_logits(load_version(adapted)))
    facts = self_test(adapted, manifest_of(adapted, version=2, facts={LOGITS_FACT: signed}))
    assert facts.logit_error is not None
    assert facts.logit_error < 1e-3
    assert facts.tokens_per_second > 0
    # The base alone, a wrong adapter, or one wrong weight moves them by more than processors differ.
    other = describe_logits(probe_logits(load_version(base)))
    with pytest.raises(SelfTestError, match="computes otherwise here than where it was signed"):
        self_test(adapted, manifest_of(adapted, version=2, facts={LOGITS_FACT: other}))


@pytest.mark.parametrize("text", ["", "1", "1:x", "-1:0.5", "1:nan", "999999:0.5", "0:1 " * 2000])
def test_expected_logits_that_make_no_sense_fail(base: Path, text: str) -> None:
    with pytest.raises(SelfTestError):
        self_test(base, manifest_of(base, version=1, facts={LOGITS_FACT: text}))


def test_a_version_must_be_fast_enough_for_the_device(base: Path) -> None:
    with pytest.raises(SelfTestError, match="this device wants 1e\\+09"):
        self_test(base, manifest_of(base, version=1), limits=SelfTestLimits(min_tokens_per_second=1e9))


def write_probe(folder: Path, completion: str) -> Path:
    folder.mkdir()
    line = json.dumps({"prompt": "The quick", "completion": completion})
    (folder / "me.jsonl").write_text(f"{line}\n{line}\n")
    return folder


def test_a_version_must_not_become_worse_on_the_devices_own_probe(base: Path, adapted: Path, tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "probe", "brown fox")
    better, worse = manifest_of(base, version=1), manifest_of(adapted, version=2)
    first = self_test(base, better, serving=adapted, probe=probe)
    assert first.probe_loss is not None
    assert first.serving_probe_loss is not None
    if first.probe_loss > first.serving_probe_loss:
        better, worse, base, adapted = worse, better, adapted, base
    strict = SelfTestLimits(max_loss_increase=0.0)
    self_test(base, better, serving=adapted, probe=probe, limits=strict)
    with pytest.raises(SelfTestError, match="worse on this device's own probe"):
        self_test(adapted, worse, serving=base, probe=probe, limits=strict)
    # Nothing serves yet: nothing to compare with.
    assert self_test(adapted, worse, probe=probe, limits=strict).probe_loss is None


def test_a_malformed_probe_is_the_owners_to_mend(base: Path, adapted: Path, tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "probe", "fox")
    (probe / "me.jsonl").write_text("{")
    with pytest.raises(ConfigurationError, match="probe"):
        self_test(adapted, manifest_of(adapted, version=2), serving=base, probe=probe)


def test_a_damaged_version_that_serves_does_not_speak_against_the_new_one(base: Path, tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "probe", "fox")
    damaged = write_adapter_version(base, tmp_path / "damaged")
    (damaged / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    facts = self_test(base, manifest_of(base, version=1), serving=damaged, probe=probe)
    assert facts.serving_probe_loss is None


def test_a_version_that_serves_nothing_but_nan_does_not_speak_against_the_new_one(base: Path, tmp_path: Path) -> None:
    probe = write_probe(tmp_path / "probe", "fox")
    rotten = write_adapter_version(base, tmp_path / "rotten")
    spoil(rotten, "norm.weight", float("nan"))
    facts = self_test(base, manifest_of(base, version=2), serving=rotten, probe=probe)
    assert facts.serving_probe_loss is None
    assert facts.probe_loss is not None


def test_numbers_that_are_not_finite_fail(base: Path, tmp_path: Path) -> None:
    tree = write_adapter_version(base, tmp_path / "tree")
    spoil(tree, "norm.weight", float("nan"))
    with pytest.raises(SelfTestError, match=r"finite|does not run"):
        self_test(tree, manifest_of(tree, version=2))


@pytest.mark.parametrize("file", ["base/model.safetensors", "base/config.json", "base/tokenizer.json"])
def test_a_version_that_does_not_load_fails_whatever_it_raises(base: Path, tmp_path: Path, file: str) -> None:
    tree = write_adapter_version(base, tmp_path / "tree")
    (tree / file).write_bytes(b"\x00" * 100)
    with pytest.raises(SelfTestError, match="v2 does not run"):
        self_test(tree, manifest_of(tree, version=2))


def test_an_adapter_without_effect_fails(base: Path, tmp_path: Path) -> None:
    tree = write_adapter_version(base, tmp_path / "tree", has_effect=False)
    with pytest.raises(SelfTestError, match="changes nothing"):
        self_test(tree, manifest_of(tree, version=2))


def test_a_version_of_another_kind_than_signed_fails(base: Path) -> None:
    manifest = manifest_of(base, version=1).model_copy(update={"kind": "adapter"})
    with pytest.raises(SelfTestError, match="signed as 'adapter'"):
        self_test(base, manifest)


@pytest.fixture
def slots(tmp_path: Path) -> SlotStore:
    return SlotStore(tmp_path / "slots", LocalDisk())


def test_the_runtime_sees_a_switch_and_loads_again(slots: SlotStore, base: Path, adapted: Path) -> None:
    runtime = Runtime(slots)
    with pytest.raises(NothingInstalledError):
        list(runtime.stream("The quick", **GREEDY))
    install(slots, base, 1)
    first = "".join(runtime.stream("The quick", **GREEDY))
    loaded = runtime._loaded
    assert runtime.version() == 1
    assert "".join(runtime.stream("The quick", **GREEDY)) == first
    assert runtime._loaded is loaded
    # Another process switches.
    install(SlotStore(slots._folder, LocalDisk()), adapted, 2)
    list(runtime.stream("The quick", **GREEDY))
    assert runtime.version() == 2


def test_pieces_make_the_whole_answer(slots: SlotStore, base: Path) -> None:
    install(slots, base, 1)
    options = GREEDY | {"temperature": 1.5, "seed": 3, "max_new_tokens": 40}
    pieces = list(Runtime(slots).stream("The quick", **options))
    loaded = load_version(base)
    tokens = generate(
        loaded.model,
        loaded.tokenizer.encode("The quick"),
        max_new_tokens=40,
        temperature=1.5,
        seed=3,
        stop_ids=loaded.tokenizer.stop_ids,
    )
    assert "".join(pieces) == loaded.tokenizer.decode(list(tokens))
    assert len(pieces) > 1


def test_chat_uses_the_models_template(slots: SlotStore, base: Path) -> None:
    install(slots, base, 1)
    runtime = Runtime(slots)
    assert isinstance("".join(runtime.stream([{"role": "user", "content": "hello"}], **GREEDY)), str)
    with pytest.raises(DeviceError, match="role"):
        list(runtime.stream([{"content": "hello"}], **GREEDY))


@pytest.mark.parametrize("prompt", ["", "word " * 5000])
def test_a_prompt_that_cannot_be_answered_is_told(slots: SlotStore, base: Path, prompt: str) -> None:
    install(slots, base, 1)
    with pytest.raises(DeviceError, match="The model cannot do this"):
        list(Runtime(slots).stream(prompt, **GREEDY))


def test_an_answer_that_is_not_read_to_its_end_blocks_nobody(slots: SlotStore, base: Path) -> None:
    install(slots, base, 1)
    runtime = Runtime(slots)
    stream = runtime.stream("The quick", **GREEDY)
    next(stream)
    stream.close()
    assert list(runtime.stream("The quick", **GREEDY))
