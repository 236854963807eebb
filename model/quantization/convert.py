"""From a base in 16 bits on disk to a quantised one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from model.checkpoint import load_checkpoint, read_config, save_quantized
from model.errors import QuantizationError
from model.quantization.calibrate import calibrate_model, calibration_windows
from model.quantization.plan import uniform_plan
from model.quantization.sensitivity import choose_kept, in_four_bits, measure_sensitivity, raised, without
from model.quantization.stream import quantize_stored
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model.quantization.plan import QuantizationPlan

_SENSITIVITY_TOKENS: Final = 256
# Of the weights, by count: as many as leave int4 with scales of 8 bits 65 % smaller than 16 bits.
_SENSITIVE_SHARE: Final = 0.08
_WINDOW_TOKENS: Final = 128


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """What to make of a base.

    Attributes:
        bits: 8 or 4.
        group_size: Inputs that share a scale, of int4.
        symmetric: Levels around zero, of int4: smaller and less exact.
        scale_bits: Of int4's scales and zeros, 8 or 16; symmetric levels have 16 in any case.
        embedding_bits: Of the embedding and the output, 4, 8 or 16; they decide the token and suffer most from 4.
        keep_sensitive: Share of the weights, by count, that may get `sensitive_bits`, the most sensitive ones. None:
            0.08 where there is a text to find them with and asymmetric int4 to raise to 8 bits; none otherwise.
        sensitive_bits: 8 or 16.
        calibration_tokens: How much of the calibration text is taken.
    """

    bits: int
    group_size: int = 32
    symmetric: bool = False
    scale_bits: int = 8
    embedding_bits: int = 8
    keep_sensitive: float | None = None
    sensitive_bits: int = 8
    calibration_tokens: int = 32_768

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.bits not in {4, 8} or self.embedding_bits not in {4, 8, 16}:
            raise QuantizationError(
                f"bits must be 8 or 4, of the embedding 4, 8 or 16; got {self.bits} and {self.embedding_bits}"
            )
        if self.scale_bits not in {8, 16} or self.sensitive_bits not in {8, 16}:
            raise QuantizationError(
                f"bits of scales and of sensitive weights must be 8 or 16; got {self.scale_bits} and "
                f"{self.sensitive_bits}"
            )
        if not 0 <= (self.keep_sensitive or 0) < 1:
            raise QuantizationError(f"the share of sensitive weights must be in [0, 1), got {self.keep_sensitive}")
        if self.keep_sensitive and self.sensitive_bits <= self.bits:
            raise QuantizationError(f"sensitive weights of {self.sensitive_bits} bits gain nothing; give them 16")

    def sensitive_share(self, *, has_text: bool) -> float:
        """Share of the weights that may get more bits, by count."""
        if self.keep_sensitive is not None:
            return self.keep_sensitive
        is_usual = self.bits == 4 and self.sensitive_bits == 8 and not self.symmetric  # noqa: PLR2004  (bits)
        return _SENSITIVE_SHARE if has_text and is_usual else 0.0


@dataclass(frozen=True)
class QuantizationReport:
    """What came of it.

    Attributes:
        bytes_before: Of model.safetensors.
        bytes_after: Of model.safetensors, scales included.
        kept: Weights that got more bits for being sensitive.
        loss_rises: Rise of the loss, in nats a token, of quantising each weight alone; empty if not measured.
        is_calibrated: Whether GPTQ was used.
        seconds: How long it took.
    """

    bytes_before: int
    bytes_after: int
    kept: tuple[str, ...]
    loss_rises: dict[str, float]
    is_calibrated: bool
    seconds: float


def quantize_checkpoint(
    source: Path,
    out: Path,
    options: QuantizationOptions,
    *,
    calibration_text: str | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> QuantizationReport:
    """Quantise the base in `source` into `out`.

    Args:
        source: A checkpoint's folder.
        out: Folder to fill; another one than `source`.
        options: What to make of it.
        calibration_text: A few hundred lines like those the model will see: weights are then found by GPTQ, and
            sensitivities are measured on it.
        on_progress: Called with what is being done, how much is done, and how much there is.

    Raises:
        QuantizationError: It cannot be done so; sensitive weights are asked for without a text to find them with.
        CheckpointError: The base is missing or damaged, or this disk does not take the result.
    """
    if options.keep_sensitive and calibration_text is None:
        raise QuantizationError("finding sensitive weights needs a text; give a few hundred lines to calibrate with")
    if out.resolve() == source.resolve():
        raise QuantizationError(f"{out} is the base itself; choose another folder")
    began = time.monotonic()
    plan = uniform_plan(
        read_config(source),
        bits=options.bits,
        group_size=options.group_size,
        symmetric=options.symmetric,
        scale_bits=options.scale_bits,
        embedding_bits=max(options.bits, options.embedding_bits),
    )
    rises: dict[str, float] = {}
    kept: tuple[str, ...] = ()
    if calibration_text is None:
        count = iter(range(1, len(plan.tensors) + 1))
        report = _named(on_progress, "Quantising")
        quantize_stored(source, out, plan, on_tensor=lambda _: report(next(count), len(plan.tensors)))
    else:
        rises, kept = _calibrated(source, out, plan, options, calibration_text, on_progress)
    return QuantizationReport(
        bytes_before=(source / "model.safetensors").stat().st_size,
        bytes_after=(out / "model.safetensors").stat().st_size,
        kept=kept,
        loss_rises=rises,
        is_calibrated=calibration_text is not None,
        seconds=time.monotonic() - began,
    )


def _calibrated(
    source: Path,
    out: Path,
    plan: QuantizationPlan,
    options: QuantizationOptions,
    text: str,
    on_progress: Callable[[str, int, int], None] | None,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """With a text the model runs, and so lies in memory; what each weight costs, and which got more bits."""
    model, tokenizer = load_checkpoint(source), Tokenizer.from_folder(source)
    token_ids = tokenizer.encode(text)
    window = min(_WINDOW_TOKENS, model.config.max_context)
    rises: dict[str, float] = {}
    kept: tuple[str, ...] = ()
    if share := options.sensitive_share(has_text=True):
        windows = calibration_windows(token_ids, window=window, max_tokens=_SENSITIVITY_TOKENS)
        asked = plan if options.sensitive_bits == 16 else in_four_bits(plan)  # noqa: PLR2004  (bits)
        found = measure_sensitivity(model, asked, windows, on_tensor=_named(on_progress, "Measuring sensitivity"))
        rises = {name: sensitivity.loss_rise for name, sensitivity in found.items()}
        kept = choose_kept(found, model.config, share=share)
        plan = without(plan, kept) if options.sensitive_bits == 16 else raised(plan, kept)  # noqa: PLR2004  (bits)
    windows = calibration_windows(token_ids, window=window, max_tokens=options.calibration_tokens)
    calibrate_model(model, plan, windows, on_layer=_named(on_progress, "Calibrating"))
    save_quantized(out, model, tokenizer)
    return rises, kept


def _named(on_progress: Callable[[str, int, int], None] | None, what: str) -> Callable[[int, int], None]:
    return (lambda _done, _count: None) if on_progress is None else (lambda done, count: on_progress(what, done, count))
