"""From a run's adapter to the next release: what rounding leaves behind is kept, and given back."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from simulators.server_home import MODEL, Home

from delta_updates import apply_package
from model import (
    LoRAConfig,
    load_adapter,
    load_quantized_adapter,
    save_adapter,
)
from model.adapter_format import ADAPTER_FORMATS, AdapterFormat
from server.errors import ArtifactDamagedError, ArtifactMissingError
from server.federation.adapter import (
    ParentRelease,
    master_bytes,
    master_of,
    parent_release,
    released_floats,
    write_release,
)
from server.federation.bases import tree_of
from server.publishing import create_candidate, materialise

LORA = LoRAConfig(rank=2, alpha=4.0)
SHAPES = {"layers.0.attention.q_proj.lora_a": (2, 16), "layers.0.attention.q_proj.lora_b": (16, 2)}
FORMS = pytest.mark.parametrize("form", ADAPTER_FORMATS)


def numbers(seed: int, stddev: float = 0.05) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (stddev * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


class Chain:
    """Releases of one model, made as `lamella release` makes them."""

    def __init__(self, home: Home, form: AdapterFormat) -> None:
        self.home, self.form, self.number = home, form, home.base().number
        home.publish(self.number, loss=None)

    def parent(self) -> ParentRelease | None:
        return parent_release(
            self.tree(),
            LORA,
            artifacts=self.home.artifacts,
            master_sha256=self.home.registry.version(MODEL, self.number).master_sha256,
        )

    def tree(self) -> Path:
        home = self.home
        return tree_of(home.settings, home.registry, home.artifacts, model=MODEL, version=self.number)

    def release(self, trained: dict[str, np.ndarray]) -> None:
        folder = self.home.folder / f"release-{self.number}"
        parent = self.parent()
        master = master_of(trained, parent)
        write_release(folder, master, LORA, form=self.form, parent=parent)
        candidate = create_candidate(
            self.home.registry,
            self.home.artifacts,
            model=MODEL,
            adapter=folder,
            parent=self.number,
            master=master_bytes(master),
        )
        self.home.publish(candidate.number)
        self.number = candidate.number

    def floats(self) -> dict[str, np.ndarray]:
        released = released_floats(self.tree(), LORA)
        assert released is not None
        return released


@FORMS
def test_updates_too_small_for_one_rounding_arrive_in_the_end(home: Home, form: AdapterFormat) -> None:
    chain, total = Chain(home, form), numbers(0)
    chain.release(total)
    step = {"float16": 1e-5, "int8": 1e-4, "int4": 2e-3}[form]  # a fraction of a level
    releases = 12
    for _ in range(releases):
        # A run starts from what devices have, and moves it.
        chain.release({name: values + np.float32(step) for name, values in chain.floats().items()})
    for name, values in chain.floats().items():
        moved = (values - total[name]).mean()
        assert moved == pytest.approx(releases * step, rel=0.2), name
    # The error is that of one rounding.
    parent = chain.parent()
    assert parent is not None
    if parent.quantized is not None:
        for name, factor in parent.quantized.factors.items():
            by_rank = parent.left_behind[name].T if name.endswith("lora_b") else parent.left_behind[name]
            assert (np.abs(by_rank) <= 0.501 * factor.scales[:, None]).all()


@pytest.mark.parametrize(("form", "step"), [("int8", 1e-4), ("int4", 2e-3)])
def test_without_masters_the_same_updates_are_lost(home: Home, form: AdapterFormat, step: float) -> None:
    """What the feedback is for: how the chain above would end without it."""
    chain, start = Chain(home, form), numbers(0)
    chain.release(start)
    for _ in range(12):
        parent = chain.parent()
        assert parent is not None
        trained = {name: values + np.float32(step) for name, values in parent.floats.items()}
        folder = home.folder / f"plain-{chain.number}"
        write_release(folder, trained, LORA, form=form, parent=parent)
        chain.number = create_candidate(
            home.registry, home.artifacts, model=MODEL, adapter=folder, parent=chain.number
        ).number
    name = "layers.0.attention.q_proj.lora_a"
    assert (chain.floats()[name] - start[name]).mean() < 0.5 * 12 * step


@FORMS
def test_what_is_hashed_is_what_is_stored_and_a_master_is_in_no_tree_and_no_package(
    home: Home, form: AdapterFormat
) -> None:
    chain = Chain(home, form)
    chain.release(numbers(1))
    chain.release(numbers(2))
    record = home.registry.version(MODEL, chain.number)
    assert record.master_sha256 is not None
    packages = home.registry.packages(MODEL, chain.number)
    assert record.master_sha256 not in {entry.sha256 for entry in (*record.manifest.files, *packages)}
    assert record.master_sha256.encode() not in record.manifest.to_bytes()
    master = load(home.artifacts.read_bytes(record.master_sha256))
    assert [package.source_version for package in packages] == [None, chain.number - 1]
    for package in packages:
        source = None
        if package.source_version is not None:
            source = home.folder / "source"
            materialise(home.registry, home.artifacts, model=MODEL, version=package.source_version, folder=source)
        out = home.folder / f"applied-{package.source_version}"
        apply_package(source, home.artifacts.path(package.sha256), out, expected_target_hash=record.manifest.tree_hash)
        for entry in record.manifest.files:
            raw = (out / entry.path).read_bytes()
            # The bytes that a device keeps are those that were hashed: whole numbers and scales, nothing merged.
            assert hashlib.sha256(raw).hexdigest() == entry.sha256
            assert not [name for name, values in master.items() if values.tobytes() in raw]
        assert (load_quantized_adapter(out / "adapter") is None) == (form == "float16")


def test_the_format_may_change_from_run_to_run_without_a_loss(home: Home) -> None:
    chain = Chain(home, "int4")
    first = numbers(3)
    chain.release(first)
    coarse = chain.floats()
    chain.form = "int8"
    chain.release(coarse)  # a run that changed nothing
    fine = chain.floats()
    for name, values in first.items():
        assert np.abs(fine[name] - values).max() < 0.1 * np.abs(coarse[name] - values).max()
    chain.form = "float16"
    chain.release(fine)
    for name, values in first.items():
        np.testing.assert_allclose(chain.floats()[name], values, rtol=1e-3, atol=1e-6)


def test_a_version_without_a_master_has_left_nothing_behind(home: Home, tmp_path: Path) -> None:
    chain = Chain(home, "int8")
    save_adapter(tmp_path / "old", {name: torch.from_numpy(values) for name, values in numbers(4).items()}, LORA)
    chain.number = create_candidate(
        home.registry, home.artifacts, model=MODEL, adapter=tmp_path / "old", parent=chain.number
    ).number
    parent = chain.parent()
    assert parent is not None
    assert (parent.quantized, parent.left_behind) == (None, {})
    trained = numbers(5)
    assert all((master_of(trained, parent)[name] == values).all() for name, values in trained.items())


def test_another_shape_starts_anew(home: Home) -> None:
    chain = Chain(home, "int8")
    assert chain.parent() is None
    chain.release(numbers(6))
    tree = chain.tree()
    other = LoRAConfig(rank=2, alpha=5.0)
    assert released_floats(tree, other) is None
    master = home.registry.version(MODEL, chain.number).master_sha256
    assert parent_release(tree, other, artifacts=home.artifacts, master_sha256=master) is None
    assert load_adapter(tree / "adapter")[1] == LORA


def test_a_lost_or_foreign_master_is_told_and_nothing_is_released(home: Home) -> None:
    chain = Chain(home, "int8")
    chain.release(numbers(7))
    foreign = home.artifacts.put_bytes(master_bytes({"another": np.zeros(3, np.float32)}))
    with pytest.raises(ArtifactDamagedError, match="another version"):
        parent_release(chain.tree(), LORA, artifacts=home.artifacts, master_sha256=foreign)
    rubbish = home.artifacts.put_bytes(b"rubbish")
    with pytest.raises(ArtifactDamagedError, match="is no adapter"):
        parent_release(chain.tree(), LORA, artifacts=home.artifacts, master_sha256=rubbish)
    master = home.registry.version(MODEL, chain.number).master_sha256
    assert master is not None
    home.artifacts.path(master).unlink()
    with pytest.raises(ArtifactMissingError, match="backup"):
        chain.release(numbers(8))
