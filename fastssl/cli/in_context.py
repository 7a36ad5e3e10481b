"""``fastssl in-context``: tasks solved from examples in the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from fastssl.cli.flags import parse_flags
from fastssl.cli.plain_table import plain_table
from fastssl.cli.threads import use_threads
from fastssl.tasks.in_context.config import InContextConfig
from fastssl.tasks.in_context.experiment import SHOTS_FIGURE, SIZES_FIGURE, SUMMARY_FILE, TABLE_FILE, measure_in_context
from fastssl.tasks.in_context.figure import mean_accuracy, shots_word
from fastssl.tasks.in_context.results import AskedTask, InContextReport


@dataclass(frozen=True, kw_only=True)
class InContextFlags(InContextConfig):
    r"""Ask causal language models tasks with no, one and a few solved examples in the prompt; nothing is trained.

    A prompt is the instruction, examples with their answers, and the question, laid out as

        Translate English to French:
        sea otter => loutre de mer
        peppermint => menthe poivrée
        cheese =>

    The examples are drawn by a seed from a file of their own or from the other rows, and the answer is the likeliest of
    the choices, or what the model writes up to the end of the line. Accuracies come with 95 % intervals and beside
    three controls: chance, the most frequent answer, and examples whose answers were shuffled. The hash of the weights
    is shown from before and after. The output directory gets a CSV of all runs, a JSON summary with the first prompt of
    each kind, and figures: accuracy against shots and, of several models, against their size.

    Examples:
      fastssl in-context --model gpt2/ --task french.jsonl --instruction "Translate English to French:"
          --shots 0 1 5 --output-dir runs/french
      fastssl in-context --model gpt2/ gpt2-medium/ gpt2-large/ --task two_digit_addition.jsonl --shots 0 1 10
          --max-examples 500 --output-dir runs/sums
      fastssl in-context --model gpt2/ --task dev.tsv --demonstration-file train.tsv --prompt-column sentence
          --completion-column label --label-words 0=negative 1=positive --choices negative positive
          --output-dir runs/sentiment
      fastssl in-context --model gpt2/ --task dev.tsv --completion-column label --separator " "
          --template "{premise}\nQuestion: {hypothesis} True or False?\nAnswer:" --example-separator "\n\n"
          --label-words entailment=True not_entailment=False --choices True False --output-dir runs/rte
    """

    num_threads: int | None = None
    """Threads of the computation; None: PyTorch's choice."""


def main(arguments: list[str]) -> int:
    """Measure, and print the table."""
    flags = parse_flags(InContextFlags, arguments, program="fastssl in-context")
    use_threads(flags.num_threads)
    errors = Console(stderr=True, highlight=False)
    report = measure_in_context(flags, say=lambda text: errors.print(text, markup=False, soft_wrap=True))
    console = Console(highlight=False, markup=False)
    _print_prompt(report, console)
    for task in report.tasks:
        _print_task(report, task, console)
    console.print()
    if len(report.tasks) > 1:
        _print_means(report, console)
    _print_models(report, console)
    figures = SHOTS_FIGURE + (f", {SIZES_FIGURE}" if len(report.models) > 1 else "")
    console.print(f"{flags.output_dir}: {figures}, {TABLE_FILE}, {SUMMARY_FILE}", soft_wrap=True)
    return 0


def _print_prompt(report: InContextReport, console: Console) -> None:
    """Show the shortest kind of prompt that has an example, or the first there is."""
    kinds = [kind for kind in report.prompts if not kind.endswith(", 0 shots")] or list(report.prompts)
    console.print(f"\nA prompt of {kinds[0]}:\n")
    console.print("\n".join(f"  | {line}" for line in report.prompts[kinds[0]].split("\n")), soft_wrap=True)


def _print_task(report: InContextReport, task: AskedTask, console: Console) -> None:
    chance = "" if task.chance is None else f", chance {task.chance:.1%}"
    console.print(
        f"\n{task.name}: {task.num_examples:,} questions by {task.scoring}; most frequent answer {task.majority:.1%}"
        f"{chance}",
        soft_wrap=True,
    )
    table = plain_table(
        "model", "shots", "accuracy", "95 % interval", "by mean\nof tokens", "shuffled\nanswers", "left\nout"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    control = {(p.model, p.shots): p for p in report.points if (p.task, p.answers) == (task.name, "shuffled")}
    for point in (p for p in report.points if (p.task, p.answers) == (task.name, "true")):
        shuffled = control.get((point.model, point.shots))
        spread = f" ± {point.deviation:.1%}" if point.num_seeds > 1 else ""
        table.add_row(
            point.model,
            str(point.shots),
            f"{point.accuracy:.1%}{spread}",
            f"{point.low:.1%} - {point.high:.1%}",
            "" if point.accuracy_per_token is None else f"{point.accuracy_per_token:.1%}",
            "" if shuffled is None else f"{shuffled.accuracy:.1%}",
            f"{point.dropped:,}" if point.dropped else "",
        )
    console.print(table)


def _print_means(report: InContextReport, console: Console) -> None:
    shots = sorted({point.shots for point in report.points}, reverse=True)
    for model in report.models:
        means = ", ".join(f"{shots_word(k)} {mean_accuracy(report, model.name, k):.1%}" for k in shots)
        console.print(f"mean of {len(report.tasks)} tasks, {model.name}: {means}", soft_wrap=True)


def _print_models(report: InContextReport, console: Console) -> None:
    for model in report.models:
        state = "unchanged" if model.is_unchanged else f"CHANGED, now {model.sha256_after[:16]}"
        console.print(
            f"{model.name}: {model.parameters:,} parameters, SHA-256 of the weights {model.sha256_before[:16]}..., "
            f"{state} after {model.seconds:.1f} s",
            soft_wrap=True,
        )
