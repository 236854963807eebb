"""`lamella convert`: a model in the form that a device's runtime loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.console import console, megabytes, show_json, show_table
from server.cli.quantize import read_text

if TYPE_CHECKING:
    from model.export.convert import ConversionReport
    from model.export.speed import Speed


def convert(
    input_model: Annotated[
        Path,
        typer.Option(
            help="A checkpoint folder, a version's tree (its adapter is merged), a Hugging Face folder, or a "
            "GGUF file.",
            exists=True,
        ),
    ],
    output_format: Annotated[str, typer.Option(help="gguf, mlx, hf or executorch.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    target_device: Annotated[
        str,
        typer.Option(
            help="What it must have room on: phone-entry, phone, phone-high, tablet, raspberry-pi-zero-2, "
            "raspberry-pi-5, laptop or desktop."
        ),
    ] = "phone",
    quantization: Annotated[
        str | None, typer.Option(help="int8, int4 or fp16; what suits the device if not given (hf: fp16).")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Text file, a few hundred lines: int4 in gguf and mlx is found by GPTQ on it and loses far less.",
            dir_okay=False,
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens that the device's cache must hold.", min=1)] = 2048,
    speed: Annotated[bool, typer.Option(help="Run both sides on this machine.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Convert a model for llama.cpp, mlx-lm, Hugging Face or ExecuTorch, and say what it gained."""
    from model.export.convert import Conversion, convert_model

    asked = Conversion(
        source=input_model,
        out=out,
        form=output_format,
        device=target_device,
        quantization=quantization,
        context=context,
        measures_speed=speed,
        calibration_text=None if calibrate is None else read_text(calibrate),
    )
    if as_json:
        report = convert_model(asked)
        _mark(report)
        show_json(report.to_json())
        return
    with console.status("Converting ...") as status:
        report = convert_model(asked, on_step=lambda step: status.update(f"{step} ..."))
    _mark(report)
    _show(report)


def _mark(report: ConversionReport) -> None:
    """Say in a Hugging Face folder which base it was made from, so that an import goes on with its bill."""
    from server.base_origin import base_hash_of, mark_origin

    made_from = base_hash_of(report.source) if report.form == "hf" else None
    if made_from is not None:
        mark_origin(report.out, made_from)


def _show(report: ConversionReport) -> None:
    saved = 1 - report.bytes_after / report.bytes_before
    difference = f"{abs(saved):.1%} {'smaller' if saved >= 0 else 'larger'}"
    rows = [
        ("size", megabytes(report.bytes_before), megabytes(report.bytes_after), difference),
        *_speed_rows(report.speed_before, report.speed_after),
    ]
    before, after = report.speed_before, report.speed_after
    console.print(
        f"{report.out}: {report.architecture}, {report.parameters / 1e6:.1f}M weights, {report.quantization}",
        soft_wrap=True,
    )
    columns = ("", before.engine if before else "before", after.engine if after else report.form, "difference")
    show_table("Before and after", columns, rows)
    if report.speed_note:
        console.print(f"No speed after: {report.speed_note}.")
    room = report.fit
    console.print(
        f"On {report.device.name} ({report.device.what}): needs {megabytes(room.needed_bytes)} with a context of "
        f"{room.context} tokens, may take {megabytes(room.usable_bytes)}: "
        f"{'fits' if room.fits else 'does NOT fit'}. Run it with {report.device.threads} threads."
    )


def _speed_rows(before: Speed | None, after: Speed | None) -> list[tuple[str, str | None, str | None, str | None]]:
    rows: list[tuple[str, str | None, str | None, str | None]] = []
    for label, key in (("prompt, tokens/s", "prefill_tokens_per_s"), ("answer, tokens/s", "decode_tokens_per_s")):
        first, second = (None if speed is None else getattr(speed, key) for speed in (before, after))
        if first is not None:
            ratio = None if second is None else f"{second / first:.1f} times"
            rows.append((label, f"{first:.1f}", None if second is None else f"{second:.1f}", ratio))
    return rows
