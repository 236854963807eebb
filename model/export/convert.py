"""One model from whatever form it has into the form that a device wants, with sizes and speeds before and after."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model.config import FORMAT
from model.errors import CheckpointError, ExportError
from model.export.devices import DeviceClass, Fit, device_class, fit
from model.export.source import ExportSource
from model.export.speed import Speed, measure_llama_cpp, measure_torch
from model.export.writers import WRITERS
from model.files import read_text
from model.importers import import_gguf, import_huggingface
from model.plans.search import BITS_PER_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.config import ModelConfig

FORMATS: Final = tuple(WRITERS)
QUANTIZATIONS: Final = {"fp16": 16, "int8": 8, "int4": 4}
_MAX_JSON_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is asked for.

    Attributes:
        source: Our checkpoint folder, a version's tree, a Hugging Face folder or a GGUF file.
        out: Folder to make.
        form: One of `FORMATS`.
        device: One of `model.export.devices.DEVICES`.
        quantization: One of `QUANTIZATIONS`; None: what suits the device and the format.
        context: Tokens that the device's cache must hold.
        measures_speed: Whether both sides are run.
        calibration_text: A few hundred lines like those the model will see: int4 is then found by GPTQ on them, and the
            most sensitive matrices get 8 bits. For gguf and mlx.
    """

    source: Path
    out: Path
    form: str
    device: str
    quantization: str | None = None
    context: int = 2048
    measures_speed: bool = True
    calibration_text: str | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What came of it.

    Attributes:
        source: What was converted.
        source_kind: `checkpoint`, `version`, `huggingface` or `gguf`.
        out: The file or folder that a runtime loads.
        form: One of `FORMATS`.
        architecture: What the format calls the model.
        quantization: One of `QUANTIZATIONS`.
        parameters: Number of weights.
        bytes_before: Of the source's weights on disk.
        bytes_after: Of the weights that were written.
        speed_before: Our torch path on this machine; None where not measured.
        speed_after: The format's runtime on this machine; None where not measured.
        speed_note: Why a speed is missing; empty otherwise.
        device: What it was converted for.
        fit: Whether it has room there.
    """

    source: Path
    source_kind: str
    out: Path
    form: str
    architecture: str
    quantization: str
    parameters: int
    bytes_before: int
    bytes_after: int
    speed_before: Speed | None
    speed_after: Speed | None
    speed_note: str
    device: DeviceClass
    fit: Fit

    def to_json(self) -> dict[str, Any]:
        """For programs: as the attributes, and the sums that a person would make of them."""
        values = asdict(self)
        values["source"], values["out"] = str(self.source), str(self.out)
        values["ratio"] = round(self.bytes_after / self.bytes_before, 4)
        values["fit"] |= {"needed_bytes": self.fit.needed_bytes, "fits": self.fit.fits}
        return values


def convert_model(asked: Conversion, *, on_step: Callable[[str], None] = lambda _: None) -> ConversionReport:
    """Convert a model.

    Args:
        asked: What is asked for.
        on_step: Called with what is being done.

    Raises:
        ExportError: The format cannot express it, it has no room on the device, or a package is missing.
        ForeignModelError: The source cannot be imported faithfully.
        CheckpointError: The source is damaged, or the disk does not take the result.
        AdapterError: The version's adapter does not fit its base.
        QuantizationError: The calibration text is too short.
    """
    device = device_class(asked.device)
    quantization = _quantization(asked, device)
    if asked.out.exists() and (not asked.out.is_dir() or any(asked.out.iterdir())):
        raise ExportError(f"{asked.out} is not an empty folder; choose a new one")
    kind = source_kind(asked.source)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.out.parent, prefix=f".{asked.out.name}-") as scratch:
        # The folder appears whole or not at all.
        made = Path(scratch) / "made"
        made.mkdir(mode=0o755)
        on_step("Reading the model")
        tree = _tree(asked.source, kind, Path(scratch))
        with ExportSource(tree) as opened:
            config = opened.config
        _require_room(device, config, quantization, asked.context)
        on_step(f"Writing {asked.form}")
        written, architecture = WRITERS[asked.form](tree, made, quantization, Path(scratch), asked.calibration_text)
        on_step("Measuring")
        before, after, note = _speeds(asked, tree, written, config)
        weights = _weights_bytes(written)
        if asked.out.exists():
            asked.out.rmdir()
        made.rename(asked.out)
    return ConversionReport(
        source=asked.source,
        source_kind=kind,
        out=asked.out / written.relative_to(made),
        form=asked.form,
        architecture=architecture,
        quantization=quantization,
        parameters=config.parameter_count,
        bytes_before=_weights_bytes(asked.source),
        bytes_after=weights,
        speed_before=before,
        speed_after=after,
        speed_note=note,
        device=device,
        fit=fit(device, config, weights_bytes=weights, context=asked.context),
    )


def source_kind(source: Path) -> str:
    """What a path holds: `checkpoint`, `version`, `huggingface` or `gguf`.

    Raises:
        CheckpointError: None of them.
    """
    if source.is_file() and source.suffix == ".gguf":
        return "gguf"
    if (source / "base" / "config.json").is_file():
        return "version"
    if (source / "config.json").is_file():
        try:
            content = json.loads(read_text(source / "config.json", max_bytes=_MAX_JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{source / 'config.json'} is not JSON: {error}") from error
        return "checkpoint" if isinstance(content, dict) and content.get("format") == FORMAT else "huggingface"
    raise CheckpointError(
        f"{source} is no checkpoint folder, no version's tree (base/), no Hugging Face folder and no .gguf file"
    )


def _quantization(asked: Conversion, device: DeviceClass) -> str:
    if asked.form not in FORMATS:
        raise ExportError(f"no output format {asked.form!r}; choose {', '.join(FORMATS)}")
    chosen = asked.quantization or ("fp16" if asked.form == "hf" else device.quantization)
    if chosen not in QUANTIZATIONS:
        raise ExportError(f"no quantization {chosen!r}; choose {', '.join(QUANTIZATIONS)}")
    if asked.form == "hf" and chosen != "fp16":
        raise ExportError(
            f"a Hugging Face folder holds {chosen} only in the form of some other package; choose fp16, or gguf or mlx"
        )
    if asked.calibration_text is not None and (chosen != "int4" or asked.form not in {"gguf", "mlx"}):
        raise ExportError(f"a text finds the levels of int4 in gguf and mlx; {chosen} in {asked.form} takes none")
    return chosen


def _tree(source: Path, kind: str, scratch: Path) -> Path:
    if kind == "gguf":
        import_gguf(source, scratch / "imported")
    elif kind == "huggingface":
        import_huggingface(source, scratch / "imported")
    else:
        return source
    return scratch / "imported"


def _require_room(device: DeviceClass, config: ModelConfig, quantization: str, context: int) -> None:
    """Before minutes of work: as many bytes as so many weights take."""
    estimate = int(config.parameter_count * BITS_PER_WEIGHT[QUANTIZATIONS[quantization]] / 8)
    room = fit(device, config, weights_bytes=estimate, context=context)
    if not room.fits:
        raise ExportError(
            f"{config.parameter_count / 1e6:.0f}M weights in {quantization} and the cache of {room.context} tokens "
            f"need about {room.needed_bytes / 1e6:.0f} MB; an application on {device.name} ({device.what}) may take "
            f"{room.usable_bytes / 1e6:.0f} MB; choose fewer bits, a shorter context, a smaller model or another device"
        )


def _speeds(asked: Conversion, tree: Path, target: Path, config: ModelConfig) -> tuple[Speed | None, Speed | None, str]:
    if not asked.measures_speed:
        return None, None, "not asked for"
    before = measure_torch(tree)
    if asked.form == "gguf":
        after = measure_llama_cpp(target, vocab_size=config.vocab_size, max_context=config.max_context)
        return before, after, "" if after else "llama.cpp's binding is not installed; run `pip install xllamacpp`"
    return before, None, f"what runs {asked.form} here says nothing about the device; measure it there"


def _weights_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    files = [*path.rglob("*.safetensors"), *path.rglob("*.gguf"), *path.rglob("*.pte")]
    return sum(file.stat().st_size for file in files)
