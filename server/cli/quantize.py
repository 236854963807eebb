"""`lamella quantize`: a base in 8 or 4 bits."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from server.cli.console import console, megabytes, show_json
from server.errors import ConfigurationError

_SHOWN_SENSITIVITIES = 5


def quantize(
    source: Annotated[
        Path, typer.Argument(help="Folder of a base, or of a version that holds base/.", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    bits: Annotated[int, typer.Option(help="8 (a scale for each channel) or 4 (a scale for each group).")] = 8,
    group_size: Annotated[int, typer.Option(help="Inputs that share a scale, with 4 bits.", min=8)] = 32,
    symmetric: Annotated[bool, typer.Option(help="Levels around zero, with 4 bits: smaller, less exact.")] = False,
    embedding_bits: Annotated[int, typer.Option(help="Of embedding and output: 4, 8 or 16.")] = 8,
    scale_bits: Annotated[
        int, typer.Option(help="Of a group's scale and zero, 8 or 16; symmetric levels have 16 in any case.")
    ] = 8,
    keep_sensitive: Annotated[
        float | None,
        typer.Option(
            help="Share of the weights that may get more bits, the most sensitive; needs --calibrate. Not given: 0.08 "
            "with 4 bits and --calibrate, none otherwise."
        ),
    ] = None,
    sensitive_bits: Annotated[int, typer.Option(help="What those get: 8 or 16.")] = 8,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Text file, a few hundred lines: weights are found by GPTQ on it.", dir_okay=False),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="How much of that text is taken.", min=1024)] = 32_768,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a base with weights of 8 or 4 bits; it loads, generates and trains adapters like any other."""
    from model.quantization.convert import QuantizationOptions, quantize_checkpoint

    is_version = (source / "base").is_dir()
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"{out} is not empty; choose a new folder.")
    options = QuantizationOptions(
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        scale_bits=scale_bits,
        embedding_bits=embedding_bits,
        keep_sensitive=keep_sensitive,
        sensitive_bits=sensitive_bits,
        calibration_tokens=calibration_tokens,
    )
    with Progress(console=console, transient=True, disable=as_json) as progress:
        tasks = {what: progress.add_task(what) for what in ("Reading",)}

        def on_progress(what: str, done: int, count: int) -> None:
            for other in set(tasks) - {what}:
                progress.remove_task(tasks.pop(other))
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=count)

        report = quantize_checkpoint(
            source / "base" if is_version else source,
            out / "base" if is_version else out,
            options,
            calibration_text=None if calibrate is None else read_text(calibrate),
            on_progress=on_progress,
        )
    if is_version and (source / "adapter").is_dir():
        shutil.copytree(source / "adapter", out / "adapter")
    if as_json:
        show_json(asdict(report))
        return
    share = 1 - report.bytes_after / report.bytes_before
    how = "GPTQ on the text" if report.is_calibrated else "nearest levels"
    console.print(
        f"{out}: {megabytes(report.bytes_before)} became {megabytes(report.bytes_after)} ({share:.1%} less), {how}, "
        f"{report.seconds:.0f} s"
    )
    most = sorted(report.loss_rises.items(), key=lambda item: -item[1])[:_SHOWN_SENSITIVITIES]
    for name, rise in most:
        console.print(f"  {name}: quantised alone {rise:+.4f} nats{', kept' if name in report.kept else ''}")


def read_text(path: Path) -> str:
    """A text file that a person gave.

    Raises:
        ConfigurationError: It cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}.") from error
