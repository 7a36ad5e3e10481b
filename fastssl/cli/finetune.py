"""``fastssl finetune``: from labelled examples to a model that does a task."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fastssl.cli.flags import parse_flags
from fastssl.tasks.finetuning import FinetuningRun, prepare_finetuning
from fastssl.tasks.finetuning_config import FinetuningConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneFlags(FinetuningConfig):
    """Teach a pretrained model a task from labelled examples, and leave a directory that Hugging Face loads.

    Files are .tsv, .csv or .jsonl with a header or keys; columns are found by well-known names (sentence, text,
    sentence1 and sentence2, premise and hypothesis, label, ...), or named. For tagging they are CoNLL-U, or have a word
    and its tag a line, or lists of words and tags in .jsonl. For question_answering they are .json in the format of
    SQuAD, version 1 or 2 (documents, questions, and the text and the place of the answers), or .jsonl with a question,
    its context and its answers a line. The names of the labels are kept in config.json. With an eval file, the model is
    measured after each epoch and its best weights are kept. A run that was stopped goes on with
    --resume-from-checkpoint last, and ends in the same weights.

    Examples:
      fastssl finetune --task classification --model bert-base-uncased/ --train-file train.tsv --eval-file dev.tsv
          --output-dir runs/sentiment
      fastssl finetune --model runs/docs --train-file pairs.jsonl --text-column question --text-pair-column answer
          --label-column fits --num-train-epochs 5 --early-stopping-patience 2 --output-dir runs/fits
      fastssl finetune --model runs/docs --from-scratch --train-file train.csv --output-dir runs/without-pretraining
      fastssl finetune --task tagging --model bert-base-cased/ --train-file train.conllu --eval-file dev.conllu
          --output-dir runs/parts-of-speech
      fastssl finetune --task question_answering --model bert-base-uncased/ --train-file train-v1.1.json
          --eval-file dev-v1.1.json --learning-rate 3e-5 --num-train-epochs 2 --output-dir runs/answers
      fastssl finetune --task embedding --model runs/docs --train-file questions-and-answers.tsv --eval-file sts.tsv
          --output-dir runs/embedder

    For the task "embedding" the training file has pairs of texts that belong together (anchor and positive, question
    and answer, ...), perhaps with a third column of hard negatives, or bare sentences (also one a line, .txt), which
    are then learnt from by dropout alone (SimCSE). What is not a pair's own in its batch is what it is told apart from.
    The eval file has two texts and a score of their likeness; without scores, pairs that belong together. The result is
    a directory of sentence-transformers.
    """


def main(arguments: list[str]) -> int:
    """Fine-tune; returns 0, or 130 or 143 after a signal."""
    flags = parse_flags(FinetuneFlags, arguments, program="fastssl finetune")
    console = Console(stderr=True, highlight=False)
    run = prepare_finetuning(flags, say=lambda text: console.print(text, markup=False, soft_wrap=True))
    result = run.run()
    if result.exit_code == 0 and run.is_main:
        print_next_steps(Path(flags.training.output_dir), run, result.best_checkpoint)
    return result.exit_code


def print_next_steps(directory: Path, run: FinetuningRun, best: Path | None) -> None:
    """Print which weights were kept, where the model is, and the commands to go on from there."""
    examples = run.config.examples
    if best is not None:
        print(f"\nthe weights of {best.name}, which did best on {examples.eval_file}, are in {directory}")
    model = shlex.quote(f"{directory}")
    given = '"a text" "and the second one"' if run.parts.has_pairs else '"a text"'
    if run.config.task == "question_answering":
        given = '--document FILE --question "a question"'
    use = f"fastssl predict --model {model} {given}"
    if run.config.task == "embedding":
        use = f'fastssl search --model {model} --file LINES "a query"'
    print(
        f"\n{directory} is a Hugging Face directory with curves.png beside the model. To go on from there:\n"
        f"  {use}\n"
        f"  fastssl evaluate --model {model} --eval-file {shlex.quote(str(examples.eval_file or 'FILE'))}"
    )
