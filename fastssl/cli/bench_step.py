"""``fastssl bench step``: the speed of a training step, and where its time goes."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from fastssl.cli.flags import parse_flags
from fastssl.models.presets import bert_preset
from fastssl.tasks.step_benchmark import StepConfig, StepSpeed, TrainingStep, measure_step, seconds_of
from fastssl.tasks.step_profile import StepPart, draw_profile, profile_step


@dataclass(frozen=True, kw_only=True)
class BenchStepFlags(StepConfig):
    """Measure a masked-LM training step of a preset: forward, backward, clipping, AdamW, on random tokens.

    Examples:
      fastssl bench step bert-base
      fastssl bench step bert-mini --per-device-train-batch-size 32 --max-seq-length 64 --profile
    """

    model: tyro.conf.Positional[str] = "bert-base"
    """Name of a preset."""
    num_threads: int | None = None
    """Threads to use; PyTorch's choice when left out."""
    profile: bool = False
    """Show the share of every part of the step."""
    output_dir: Path | None = None
    """With --profile: leave step_profile.csv and step_profile.png there."""
    json: bool = False
    """Print JSON instead of tables."""


def main(arguments: list[str]) -> int:
    """Print the speed of a step, and with ``--profile`` its parts."""
    flags = parse_flags(BenchStepFlags, arguments, program="fastssl bench step")
    if flags.output_dir is not None and not flags.profile:
        raise ValueError("output_dir is where a profile goes; add --profile")
    if flags.num_threads is not None:
        torch.set_num_threads(flags.num_threads)
    config = bert_preset(flags.model)
    speed = measure_step(config, flags)
    parts = _profile(flags) if flags.profile else []
    if flags.output_dir is not None:
        _write(parts, _title(flags, speed), flags.output_dir)
    if flags.json:
        shares = {"share_of_matmul": speed.share_of_matmul}
        print(json.dumps({**asdict(speed), **shares, "parts": [asdict(part) for part in parts]}, indent=2))
    else:
        _print(Console(highlight=False), _title(flags, speed), parts)
    return 0


def _profile(flags: BenchStepFlags) -> list[StepPart]:
    config = bert_preset(flags.model)
    step = TrainingStep(config, flags)
    seconds_of(step)
    return profile_step(step, config, steps=min(flags.steps, 3))


def _title(flags: BenchStepFlags, speed: StepSpeed) -> str:
    return (
        f"{flags.model}, {flags.per_device_train_batch_size} x {flags.max_seq_length} tokens, "
        f"{torch.get_num_threads()} threads: {speed.seconds * 1e3:,.1f} ms a step, "
        f"{speed.tokens_per_second:,.0f} tokens/s, {speed.flops_per_second / 1e9:,.0f} GFLOP/s, "
        f"{speed.share_of_matmul:.0%} of a square product's {speed.matmul_flops_per_second / 1e9:,.0f}"
    )


def _write(parts: Sequence[StepPart], title: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "step_profile.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("part", "seconds", "share", "flops"))
        writer.writerows((part.part, f"{part.seconds:.6f}", f"{part.share:.4f}", f"{part.flops:.0f}") for part in parts)
    draw_profile(parts, title, directory / "step_profile.png")


def _print(console: Console, title: str, parts: Sequence[StepPart]) -> None:
    console.print(title, soft_wrap=True)
    if not parts:
        return
    table = Table("part", "ms", "share", "GFLOP/s", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in parts:
        rate = f"{part.flops_per_second / 1e9:,.0f}" if part.flops else ""
        table.add_row(part.part, f"{part.seconds * 1e3:,.2f}", f"{part.share:.1%}", rate)
    console.print(table)
