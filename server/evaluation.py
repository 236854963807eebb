"""Held-out loss: what the gate and the progress bar judge an adapter by."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import torch

from model import (
    Tokenizer,
    add_lora,
    encode_examples,
    example_losses,
    held_out_by_user,
    held_out_loss,
    load_adapter,
    load_adapter_state,
    load_version,
    open_source,
    remove_lora,
)
from model.probe import describe_logits, logits_of
from privacy.audits import Losses
from server.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from model import EncodedExample, Example, LayeredTransformer, LoRAConfig


class HeldOutEvaluation:
    """Mean loss on people whose text no device trains on.

    One evaluation is one fixed list of examples, so that two versions are compared on the same text. `groups` has the
    label of each, None where the text says none; `people` who wrote each.
    """

    def __init__(self, tree: Path, *, data: str, examples: int, max_length: int) -> None:
        self.name = f"{data}, {examples} examples, {max_length} tokens"
        self._max_length = max_length
        self._tree = tree
        self._tokenizer = Tokenizer.from_folder(tree / "base")
        self._loaded: LayeredTransformer | None = None
        chosen = held_out_by_user(open_source(data), limit=examples)
        self.groups = tuple(example.group for _, example in chosen)
        self.people = tuple(user for user, _ in chosen)
        self._examples = encode_examples(self._tokenizer, [one for _, one in chosen], max_length=max_length)
        if not self._examples:
            raise EvaluationError(
                f"The source {data!r} has no held-out text to judge a release by. "
                "A jsonl source needs a folder `held_out` with files of people that no device trains on."
            )

    @property
    def examples(self) -> list[EncodedExample]:
        """The held-out examples."""
        return self._examples

    @property
    def _model(self) -> LayeredTransformer:
        """The base, loaded when it is asked for."""
        if self._loaded is None:
            self._loaded = load_version(self._tree, with_adapter=False).model
        return self._loaded

    def unload(self) -> None:
        """Give the weights' memory back; the next question loads them again."""
        self._loaded = None

    def encode(self, examples: Iterable[Example]) -> list[EncodedExample]:
        """Other examples, encoded the same way."""
        return encode_examples(self._tokenizer, examples, max_length=self._max_length)

    def losses_of_base(self, examples: Sequence[EncodedExample]) -> list[float]:
        """Loss per example of the base alone."""
        return example_losses(self._model, examples)

    def losses_beside_base(
        self, examples: Sequence[EncodedExample], lora: LoRAConfig
    ) -> Callable[[Mapping[str, npt.NDArray[np.float32]]], Losses]:
        """For any adapter: the losses of `examples` with it, beside the base's, which are computed once."""
        base, tokens = self.losses_of_base(examples), [example.predicted for example in examples]
        return lambda adapter: Losses(self.losses(adapter, lora, examples), base, tokens)

    def loss_of_base(self) -> float:
        """Loss of the base alone."""
        return held_out_loss(self._model, self._examples)

    def loss(self, adapter: Mapping[str, npt.NDArray[np.float32]], lora: LoRAConfig) -> float:
        """Loss with an adapter on top; the base is left as it was."""
        return fmean(self.losses(adapter, lora, self._examples))

    def loss_of_adapter(self, folder: Path) -> float:
        """Loss with an adapter in PEFT's layout, as it is shipped."""
        return fmean(self.losses_of_adapter(folder))

    def losses_of_adapter(self, folder: Path) -> list[float]:
        """Loss per held-out example with an adapter in PEFT's layout, as it is shipped."""
        state, lora = load_adapter(folder)
        floats = {name: tensor.to(torch.float32).numpy() for name, tensor in state.items()}
        return self.losses(floats, lora, self._examples)

    def expected_logits(self, folder: Path) -> str:
        """What a device's self-test compares with, for a version with this adapter; see `model.probe`."""
        state, lora = load_adapter(folder)
        add_lora(self._model, lora)
        try:
            load_adapter_state(self._model, state)
            return describe_logits(logits_of(self._model, self._tokenizer))
        finally:
            remove_lora(self._model)

    def losses(
        self,
        adapter: Mapping[str, npt.NDArray[np.float32]],
        lora: LoRAConfig,
        examples: Sequence[EncodedExample],
    ) -> list[float]:
        """Loss per example with an adapter on top."""
        add_lora(self._model, lora)
        try:
            load_adapter_state(self._model, {k: torch.from_numpy(v.copy()) for k, v in adapter.items()})
            return example_losses(self._model, examples)
        finally:
            remove_lora(self._model)
