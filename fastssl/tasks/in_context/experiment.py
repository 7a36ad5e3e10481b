"""Models that solve tasks from examples in the prompt alone: accuracy against the number of examples.

Source: Brown et al. 2020 (arXiv 2005.14165) sections 2 and 2.4; examples with wrong answers: Min et al. 2022
(arXiv 2202.12837) section 4.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastssl.data.files import make_directory
from fastssl.data.tokenizer import Tokenizer
from fastssl.device import choose_device
from fastssl.models.cost import num_parameters
from fastssl.models.gpt_files import load_config
from fastssl.tasks.generation.text_generator import TextGenerator
from fastssl.tasks.in_context.answers import Asker, GenerationAsker, LikelihoodAsker
from fastssl.tasks.in_context.config import InContextConfig, Scoring
from fastssl.tasks.in_context.demonstrations import Demonstrations
from fastssl.tasks.in_context.figure import draw_shots, draw_sizes
from fastssl.tasks.in_context.layout import Example, Layout
from fastssl.tasks.in_context.prompts import PromptMaker, Room
from fastssl.tasks.in_context.results import AskedModel, AskedTask, InContextReport, InContextRun
from fastssl.tasks.in_context.task_file import InContextTask, read_task
from fastssl.tasks.in_context.weights import weights_sha256
from fastssl.training.durable import write_whole

SUMMARY_FILE, TABLE_FILE = "in_context.json", "in_context.csv"
SHOTS_FIGURE, SIZES_FIGURE = "accuracy_by_shots.png", "accuracy_by_size.png"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A task with all that prompts are made of."""

    task: InContextTask
    layout: Layout
    pool: InContextTask
    is_own: bool
    rows: tuple[int, ...]
    scoring: Scoring

    def draws(self, setting: _Setting, *, shared: bool) -> list[list[Example]]:
        """Return the examples above each question."""
        pool, groups = self.pool, self.task.groups
        demonstrations = Demonstrations(
            pool.examples, groups=pool.groups, is_own=self.is_own, shared=shared, seed=setting.seed
        )
        return [
            demonstrations.draw(
                row, setting.shots, group=None if groups is None else groups[row], shuffled=setting.shuffled
            )
            for row in self.rows
        ]

    def described(self) -> AskedTask:
        """Return it with what is right by chance and by the most frequent answer."""
        choices = self.task.choices if self.scoring == "likelihood" else None
        (usual, _), *_ = Counter(example.completion for example in self.pool.examples).most_common(1)
        return AskedTask(
            name=self.task.name,
            scoring=self.scoring,
            num_examples=len(self.rows),
            chance=statistics.fmean(1 / len(choices[row]) for row in self.rows) if choices else None,
            majority=statistics.fmean(self.task.examples[row].completion == usual for row in self.rows),
        )


def measure_in_context(config: InContextConfig, *, say: Callable[[str], None] = print) -> InContextReport:
    """Ask every model every task with every number of shots, and write what comes of it into the output directory.

    Args:
        config: what to do.
        say: takes a line for each step.

    Raises:
        FileNotFoundError: A file or a part of a model is missing.
        ValueError: A task that cannot be read, too few rows for the shots, a question longer than a model's context, or
            a directory of another kind of model.
    """
    tasks = _named_apart([_prepare(config, number, path) for number, path in enumerate(config.task)], config.task)
    _check_label_words(config, tasks)
    for asked in tasks:  # too few rows are told by the most shots, and what is wrong with the last model at once
        asked.draws(_settings(config)[-1], shared=config.demonstrations.shared_demonstrations)
    choose_device(config.device)
    for directory in config.model:
        load_config(directory)
        Tokenizer.load(directory)
    make_directory(config.output_dir)
    names = unique_names([path.absolute() for path in config.model])
    models, runs, prompts = [], [], {}
    for name, directory in zip(names, config.model, strict=True):
        asked, own_runs = _ask_model(config, _Subject(config, name, directory), tasks, prompts, say)
        models.append(asked)
        runs += own_runs
    report = InContextReport(
        models=tuple(sorted(models, key=lambda model: model.parameters)),
        tasks=tuple(asked.described() for asked in tasks),
        runs=tuple(runs),
        prompts=prompts,
    )
    save(report, config.output_dir)
    return report


def save(report: InContextReport, directory: Path) -> None:
    """Write table, summary and figures; that over sizes where there are several models."""
    make_directory(directory)
    write_whole(directory / SUMMARY_FILE, json.dumps(report.summary(), indent=1, ensure_ascii=False) + "\n")
    write_whole(directory / TABLE_FILE, report.table())
    draw_shots(report, directory / SHOTS_FIGURE)
    if len(report.models) > 1:
        draw_sizes(report, directory / SIZES_FIGURE)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of some paths, as many as tell them apart."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _named_apart(tasks: Sequence[_Asked], paths: Sequence[Path]) -> list[_Asked]:
    """Name tasks by the ends of their paths where files of different folders, or endings, have the same name."""
    names = [asked.task.name for asked in tasks]
    if len(set(names)) < len(names):
        names = unique_names([path.absolute() for path in paths])
    return [replace(asked, task=replace(asked.task, name=name)) for asked, name in zip(tasks, names, strict=True)]


def _check_label_words(config: InContextConfig, tasks: Sequence[_Asked]) -> None:
    labels = {pair.split("=", 1)[0] for pair in config.columns.label_words}
    unknown = sorted(labels.difference(*(asked.task.reworded | asked.pool.reworded for asked in tasks)))
    if unknown:
        raise ValueError(
            f"label_words gives a word for {unknown[0]!r}, which is the answer of no row; put the file's answer in "
            "front and the word behind, as in 0=negative"
        )


def _prepare(config: InContextConfig, number: int, path: Path) -> _Asked:
    needs_choices = {"likelihood": True, "generation": False}.get(config.scoring)
    task = read_task(path, config.columns, needs_choices=needs_choices)
    files = config.demonstrations.demonstration_file
    pool = read_task(files[number], config.columns) if files else task
    rows = np.arange(len(task.examples))
    if config.max_examples is not None and config.max_examples < len(rows):
        draw = np.random.default_rng(config.demonstrations.seed % 2**64)
        rows = np.sort(draw.permutation(rows)[: config.max_examples])
    if task.instruction is None and not config.layout.instruction:
        raise ValueError(f"{path}: the column 'instruction' must be the same in all rows; give one as instruction")
    scoring = config.scoring if config.scoring != "auto" else "generation" if task.choices is None else "likelihood"
    if scoring == "generation":
        _expect_single_lines(task, rows)
    return _Asked(
        task=task,
        layout=Layout.of(config.layout, number, task.examples, task.instruction or ""),
        pool=pool,
        is_own=not files,
        rows=tuple(rows.tolist()),
        scoring=scoring,
    )


def _expect_single_lines(task: InContextTask, rows: Iterable[int]) -> None:
    for row in rows:
        answer = task.examples[row].completion
        if "\n" in answer.rstrip():
            raise ValueError(
                f"{task.places[row]}: the answer {answer!r:.60} holds a line end, where generated answers are over; "
                "score by likelihood, with choices, or leave the row out"
            )


class _Subject:
    """A model that is asked.

    Raises:
        ValueError: where prompts are to begin with a token that it does not have.
    """

    def __init__(self, config: InContextConfig, name: str, directory: Path) -> None:
        generator = TextGenerator.load(directory, dtype=config.dtype, device=config.device)
        self.name, self.directory, self.model = name, directory, generator.model
        self.parameters = num_parameters(self.model.config)  # of a quantised one, those that it was made of
        sizes, wanted = self.model.config, config.layout.begin_with_bos
        if wanted and sizes.bos_token_id is None:
            raise ValueError(f"begin_with_bos: the model in {directory} has no bos_token_id; leave it out")
        self.room = Room(
            tokenizer=generator.tokenizer,
            positions=sizes.max_position_embeddings,
            bos=sizes.bos_token_id if wanted or (wanted is None and generator.tokenizer.adds_bos) else None,
        )
        self.askers: dict[Scoring, Asker] = {
            "likelihood": LikelihoodAsker(self.model, tokens_per_batch=config.tokens_per_batch),
            "generation": GenerationAsker(generator, max_new_tokens=config.max_new_tokens),
        }


def _ask_model(
    config: InContextConfig,
    subject: _Subject,
    tasks: Sequence[_Asked],
    prompts: dict[str, str],
    say: Callable[[str], None],
) -> tuple[AskedModel, list[InContextRun]]:
    before, begin, runs = weights_sha256(subject.model), time.perf_counter(), []
    for asked in tasks:
        for setting in _settings(config):
            run, first = _ask(asked, subject, setting, shared=config.demonstrations.shared_demonstrations)
            runs.append(run)
            if not setting.shuffled:
                prompts.setdefault(f"{asked.task.name}, {setting.shots} shots", first)
            say(_told(run))
    model = AskedModel(
        name=subject.name,
        directory=str(subject.directory),
        parameters=subject.parameters,
        sha256_before=before,
        sha256_after=weights_sha256(subject.model),
        seconds=time.perf_counter() - begin,
    )
    return model, runs


class _Setting(NamedTuple):
    """What is in the prompts of one run."""

    shots: int
    shuffled: bool
    seed: int


def _settings(config: InContextConfig) -> list[_Setting]:
    """Return the settings of all runs: without examples there is one draw, and nothing to shuffle."""
    own = config.demonstrations
    seeds = range(own.seed, own.seed + own.num_seeds)
    kinds = (False,) if own.skip_shuffled_control else (False, True)
    return [
        _Setting(shots, shuffled, seed)
        for shots in sorted(own.shots)
        for shuffled in kinds
        for seed in seeds
        if shots or (seed == own.seed and not shuffled)
    ]


def _ask(asked: _Asked, subject: _Subject, setting: _Setting, *, shared: bool) -> tuple[InContextRun, str]:
    maker, asker = PromptMaker(asked.task, asked.layout, subject.room), subject.askers[asked.scoring]
    draws = asked.draws(setting, shared=shared)
    prompts = maker.make(asked.rows, draws, asker.room_for_answers(maker, asked.rows))
    answered = asker.ask(maker, prompts)
    per_token = [one.is_right_per_token for one in answered]
    run = InContextRun(
        model=subject.name,
        parameters=subject.parameters,
        task=asked.task.name,
        shots=setting.shots,
        answers="shuffled" if setting.shuffled else "true",
        seed=setting.seed,
        num_examples=len(answered),
        num_right=sum(one.is_right for one in answered),
        num_right_per_token=None if None in per_token else sum(per_token),
        shots_shown=statistics.fmean(prompt.shots for prompt in prompts),
        dropped=sum(prompt.dropped for prompt in prompts),
    )
    return run, prompts[0].text


def _told(run: InContextRun) -> str:
    shuffled = ", shuffled answers" if run.answers == "shuffled" else ""
    dropped = f"; {run.dropped:,} examples found no room and were left out" if run.dropped else ""
    return (
        f"[{run.model}] {run.task}, {run.shots} shots{shuffled}, seed {run.seed}: "
        f"{run.num_right:,} of {run.num_examples:,} right, {run.accuracy:.1%}{dropped}"
    )
