"""In-context learning: the lecture's prompts to the letter, draws, controls, intervals, answers, what does not fit."""

import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastssl.data.continuation import encode_continuations
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.cost import num_parameters
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.gpt_config import GPTConfig
from fastssl.tasks.generation.text_generator import TextGenerator
from fastssl.tasks.in_context.answers import GenerationAsker, LikelihoodAsker
from fastssl.tasks.in_context.config import DemonstrationConfig, InContextConfig, TaskColumnConfig
from fastssl.tasks.in_context.demonstrations import Demonstrations
from fastssl.tasks.in_context.experiment import measure_in_context, unique_names
from fastssl.tasks.in_context.layout import Example, Layout, LayoutConfig
from fastssl.tasks.in_context.prompts import PromptMaker, Room
from fastssl.tasks.in_context.proportion import wilson_interval
from fastssl.tasks.in_context.task_file import InContextTask, read_task
from fastssl.tasks.in_context.weights import weights_sha256

FRENCH = [
    Example("sea otter", "loutre de mer"),
    Example("peppermint", "menthe poivrée"),
    Example("plush giraffe", "girafe peluche"),
]


def write_lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def tiny_model(path, width: int = 16, positions: int = 96):
    torch.manual_seed(width)
    tokenizer = Tokenizer.of_bytes()
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=positions, initializer_range=0.6, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    GPTForCausalLM(config).save_pretrained(path)
    tokenizer.save(path)
    return path


def task_of(examples, choices=None) -> InContextTask:
    places = tuple(f"line {number}" for number in range(len(examples)))
    return InContextTask(name="task", examples=tuple(examples), choices=choices, places=places)


def test_the_lectures_prompt_to_the_letter():
    layout = Layout.of(LayoutConfig(instruction=("Translate English to French:",)), 0, FRENCH)
    assert layout.prompt("cheese", []) == "Translate English to French:\ncheese =>"
    assert layout.prompt("cheese", FRENCH[:1]) == (
        "Translate English to French:\nsea otter => loutre de mer\ncheese =>"
    )
    assert layout.prompt("cheese", FRENCH) == (
        "Translate English to French:\n"
        "sea otter => loutre de mer\n"
        "peppermint => menthe poivrée\n"
        "plush giraffe => girafe peluche\n"
        "cheese =>"
    )
    assert layout.answer("fromage") == " fromage"


def test_files_that_are_laid_out_already_stay_as_they_are():
    rows = [Example("\n\nQ: What is 98 plus 45?\n\nA:", " 143"), Example("\n\nQ: What is 1 plus 1?\n\nA:", " 2")]
    layout = Layout.of(LayoutConfig(), 0, rows)
    assert layout.prompt(rows[1].prompt, rows[:1]) == (
        "\n\nQ: What is 98 plus 45?\n\nA: 143\n\nQ: What is 1 plus 1?\n\nA:"
    )
    assert layout.answer(" 2") == " 2"


def test_line_ends_can_be_spelt_in_flags():
    layout = Layout.of(LayoutConfig(instruction=("One", "Two"), separator="\\n", example_separator="\\n\\n"), 1, FRENCH)
    assert layout.prompt("cheese", FRENCH[:1]) == "Two\n\nsea otter\nloutre de mer\n\ncheese\n"
    assert layout.answer("fromage") == "fromage"


@pytest.mark.parametrize("shared", [False, True])
def test_demonstrations_are_never_the_question_and_grow_by_one(shared):
    pool = [Example(str(number), str(number)) for number in range(12)]
    own = Demonstrations(pool, is_own=True, shared=shared, seed=3)
    for row in range(12):
        draws = [own.draw(row, number) for number in range(12)]
        assert all(pool[row] not in draw and len({*draw}) == number for number, draw in enumerate(draws))
        assert all(draws[number] == draws[-1][:number] for number in range(12))
        assert own.draw(row, 5) == Demonstrations(pool, is_own=True, shared=shared, seed=3).draw(row, 5)
    different = {tuple(own.draw(row, 2)) for row in range(12)}
    assert len(different) <= 3 if shared else len(different) > 6
    assert own.draw(0, 6) != Demonstrations(pool, is_own=True, shared=shared, seed=4).draw(0, 6)
    with pytest.raises(ValueError, match="12 shots need as many examples to draw from, and there are 11"):
        own.draw(0, 12)
    assert len(Demonstrations(pool, is_own=False, shared=shared, seed=3).draw(0, 12)) == 12


def test_shuffled_answers_are_those_of_others():
    pool = [Example(str(number), str(number)) for number in range(9)]
    demonstrations = Demonstrations(pool, is_own=True, shared=False, seed=0)
    for row in range(9):
        draw = demonstrations.draw(row, 8, shuffled=True)
        assert [one.prompt for one in draw] == [one.prompt for one in demonstrations.draw(row, 8)]
        assert all(one.prompt != one.completion for one in draw)
    assert demonstrations.draw(0, 1, shuffled=True)[0].completion != demonstrations.draw(0, 1)[0].completion


@pytest.mark.parametrize("num_groups", [1, 3])
def test_shuffled_answers_never_hold_that_of_the_question(num_groups):
    pool = [Example(str(number), str(number)) for number in range(12)]
    groups = [str(number % num_groups) for number in range(12)]
    seen = set()
    for seed in range(60):
        demonstrations = Demonstrations(pool, groups=groups, is_own=True, shared=False, seed=seed)
        for row in range(12):
            draw = demonstrations.draw(row, 3, group=groups[row], shuffled=True)
            assert all(one.completion not in (one.prompt, str(row)) for one in draw)
            assert all(int(one.completion) % num_groups == row % num_groups for one in draw)
            seen |= {(one.prompt, one.completion) for one in draw}
    own = 12 // num_groups
    assert len(seen) == num_groups * own * (own - 1)  # any two of a group


def test_examples_are_of_the_questions_own_group():
    pool = [Example(str(number), "even" if number % 2 == 0 else "odd") for number in range(10)]
    groups = [example.completion for example in pool]
    own = Demonstrations(pool, groups=groups, is_own=True, shared=False, seed=0)
    for row in range(10):
        drawn = own.draw(row, 4, group=groups[row])
        assert {example.completion for example in drawn} == {groups[row]} and pool[row] not in drawn
    with pytest.raises(
        ValueError, match="5 shots need as many examples of the group 'odd' to draw from, and there are 4"
    ):
        own.draw(1, 5, group="odd")
    with pytest.raises(ValueError, match="of the group 'neither' to draw from"):
        Demonstrations(pool, groups=groups, is_own=False, shared=False, seed=0).draw(0, 1, group="neither")


@pytest.mark.parametrize(("share", "number"), [(0.5, 10), (0.0, 5), (1.0, 5), (0.37, 100), (0.9, 1)])
def test_wilson_interval_is_where_the_score_test_turns(share, number):
    from scipy import stats

    low, high = wilson_interval(share, number)
    if float(share * number).is_integer():
        expected = stats.binomtest(round(share * number), number).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    for end in {low, high} - {0.0, 1.0}:
        assert abs(share - end) == pytest.approx(1.959963984540054 * np.sqrt(end * (1 - end) / number))
    with pytest.raises(ValueError, match="of at least one trial"):
        wilson_interval(0.5, 0)


def test_answers_by_likelihood_are_those_of_a_loop(directory):
    examples = [Example(f"{a}{b}", a) for a in "ABC" for b in "xyz"]
    task = task_of(examples, (("A", "BB", "CDE", "C", "B"),) * 9)
    generator = TextGenerator.load(directory)
    room = Room(tokenizer=generator.tokenizer, positions=96, bos=256)
    maker = PromptMaker(task, Layout(instruction="First letter:"), room)
    asker = LikelihoodAsker(generator.model, tokens_per_batch=200)
    rows = range(9)
    prompts = maker.make(rows, [examples[4:6]] * 9, asker.room_for_answers(maker, rows))
    assert prompts[0].text == "First letter:\nBy => B\nBz => B\nAx =>" and prompts[0].tokens[0] == 256
    found = asker.ask(maker, prompts)
    for prompt, answered in zip(prompts, found, strict=True):
        sums, means = [], []
        for choice in task.choices[prompt.row]:
            ids = [*prompt.tokens, *generator.tokenizer.encode(" " + choice)]
            with torch.no_grad():
                logits = generator.model(input_ids=torch.tensor([ids])).logits[0]
            scores = logits.log_softmax(-1)[range(len(prompt.tokens) - 1, len(ids) - 1), ids[len(prompt.tokens) :]]
            sums.append(float(scores.sum()))
            means.append(float(scores.mean()))
        assert answered.log_probabilities == pytest.approx(sums, abs=1e-4)
        choices, right = task.choices[prompt.row], examples[prompt.row].completion
        assert answered.answer == choices[int(np.argmax(sums))]
        assert answered.is_right == (answered.answer == right)
        assert answered.is_right_per_token == (choices[int(np.argmax(means))] == right)
    assert len({one.answer for one in found}) > 1 or len({one.log_probabilities for one in found}) > 1


def test_answers_by_generation_end_with_the_line(directory):
    generator = TextGenerator.load(directory, prompts_at_once=2)
    texts = ["A =>", "AB =>", "ABCDE =>"]
    written = [one.text.split("\n")[0].strip() for one in generator(texts, max_new_tokens=6)]
    right = [Example(text.removesuffix(" =>"), answer) for text, answer in zip(texts, written, strict=True)]
    right[1] = right[1]._replace(completion="something else")
    room = Room(tokenizer=generator.tokenizer, positions=96, bos=generator.model.config.bos_token_id)
    maker = PromptMaker(task_of(right), Layout(), room)
    asker = GenerationAsker(generator, max_new_tokens=6)
    found = asker.ask(maker, maker.make(range(3), [[]] * 3, asker.room_for_answers(maker, range(3))))
    assert [one.is_right for one in found] == [True, False, True]
    assert [one.answer for one in found] == written
    assert all(one.is_right_per_token is None for one in found)
    unbounded = GenerationAsker(generator, max_new_tokens=None)
    assert (
        unbounded.room_for_answers(maker, range(3))[0] == max(len(f" {one.completion}".encode()) for one in right) + 4
    )


def test_examples_without_room_are_left_out_from_the_front(directory):
    task = task_of([Example("q" * 20, "a"), Example("q" * 70, "a"), Example("q" * 93, "a")], (("a", "bcd"),) * 3)
    room = Room(tokenizer=Tokenizer.of_bytes(), positions=96, bos=None)
    maker = PromptMaker(task, Layout(), room)
    asker = LikelihoodAsker(TextGenerator.load(directory).model, tokens_per_batch=100)
    draw = [Example(letter * 20, "x") for letter in "fgh"]
    needed = asker.room_for_answers(maker, [0, 1, 2])
    first, second = maker.make([0, 1], [draw, draw], needed[:2])
    assert (first.shots, first.dropped) == (2, 1) and first.text.startswith("g" * 20 + " => x\nh")
    assert (second.shots, second.dropped) == (0, 3) and second.text == "q" * 70 + " =>"
    with pytest.raises(
        ValueError, match="line 2: the question has 96 tokens without any example, and the model has 96"
    ):
        maker.make([2], [draw], needed[2:])
    assert all(len(one.tokens) + 3 <= 96 for one in (first, second))
    asker.ask(maker, [first, second])


def test_tokens_are_cut_where_context_and_continuation_meet():
    tokenizer = Tokenizer.train_byte_pairs(["the house the horse the hose the hour"] * 3, vocab_size=280)
    (context, continuation), (empty, whole), (moved, behind) = encode_continuations(
        tokenizer, [("the house the", " horse"), ("", "the"), ("the ", "house")]
    )
    assert tokenizer.decode(context) == "the house the" and tokenizer.decode(continuation) == " horse"
    assert empty == [] and tokenizer.decode(whole) == "the"
    assert tokenizer.decode(moved) == "the" and tokenizer.decode(behind) == " house"
    with pytest.raises(ValueError, match="no token of its own"):
        encode_continuations(tokenizer, [("the", "")])


def test_columns_words_templates_and_choices(tmp_path):
    rows = [{"premise": "A", "hypothesis": "B", "label": 1}, {"premise": "C", "hypothesis": "D", "label": 0}]
    pairs = write_lines(tmp_path / "pairs.jsonl", rows)
    columns = TaskColumnConfig(template="{premise}\\nor {hypothesis}?", label_words=("0=no", "1=yes"))
    task = read_task(pairs, columns)
    assert task.examples == (Example("A\nor B?", "yes"), Example("C\nor D?", "no"))
    assert task.choices == (("no", "yes"),) * 2
    own = write_lines(tmp_path / "own.jsonl", [{"prompt": "1+1", "completion": "2", "choices": ["2", "3"]}])
    assert read_task(own, TaskColumnConfig()).choices == (("2", "3"),)
    many = write_lines(tmp_path / "many.jsonl", [{"context": str(n), "completion": n} for n in range(30)])
    assert read_task(many, TaskColumnConfig()).choices is None
    grouped = [{"prompt": "1+1", "completion": "2", "way": "there", "instruction": "Add:"}]
    task = read_task(write_lines(tmp_path / "grouped.jsonl", grouped), TaskColumnConfig(group_column="way"))
    assert task.groups == ("there",) and task.instruction == "Add:"
    assert Layout.of(LayoutConfig(), 0, task.examples, task.instruction).prompt("2+2", []) == "Add:\n2+2 =>"
    assert Layout.of(LayoutConfig(instruction=("Sum:",)), 0, task.examples, task.instruction).instruction == "Sum:"
    tsv = tmp_path / "dev.tsv"
    tsv.write_text("sentence\tlabel\ngood film\t1\nbad film\t0\n")
    assert read_task(tsv, columns.__class__(label_words=("0=no", "1=yes"))).examples[0] == Example("good film", "yes")


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"a": "x", "label": "y"}, {}, "no column of prompt, context, text"),
        ({"text": "x", "b": "y"}, {}, "name it as completion_column"),
        ({"text": "x", "label": "y"}, {"prompt_column": "words"}, "no column 'words'"),
        ({"text": "x", "label": "y"}, {"choices": ("a", "b")}, "line 1: the answer 'y' is not among the choices"),
        ({"text": "x", "label": "y", "choices": "y"}, {}, "line 1: choices must be a list of texts, got 'y'"),
        ({"text": None, "label": "y"}, {}, "line 1: the column 'text' must hold text, got None"),
        ({"text": "x", "label": "y"}, {"template": "{words}"}, "no column 'words'"),
        ({"text": "x", "label": "y"}, {"template": "{text.a}"}, "no column 'text.a'"),
        ({"text": "x", "label": "y"}, {"template": "{text"}, "cannot be read: .* name columns in braces"),
        (
            {"text": "x", "b": None, "label": "y"},
            {"template": "{b}?"},
            "line 1: the column 'b' must hold text, got None",
        ),
        (
            {"text": "x", "label": "y"},
            {"choices_column": "options"},
            "no column 'options', .* name it as choices_column",
        ),
        ({"text": "x", "label": ""}, {}, "line 1: the answer is empty"),
    ],
)
def test_mistakes_in_files_are_told(tmp_path, row, columns, message):
    with pytest.raises(ValueError, match=message):
        read_task(write_lines(tmp_path / "task.jsonl", [row]), TaskColumnConfig(**columns))


def test_mistakes_in_the_config_are_told(tmp_path):
    paths = {"model": (tmp_path,), "task": (tmp_path / "a", tmp_path / "b"), "output_dir": tmp_path}
    with pytest.raises(ValueError, match="one file a task, 2, or none; got 1"):
        InContextConfig(**paths, demonstrations=DemonstrationConfig(demonstration_file=(tmp_path,)))
    with pytest.raises(ValueError, match="instruction takes one text, or one a task, got 3"):
        InContextConfig(**paths, layout=LayoutConfig(instruction=("a", "b", "c")))
    with pytest.raises(ValueError, match="task takes at least one path, none of them twice"):
        InContextConfig(**{**paths, "task": (tmp_path, tmp_path)})
    with pytest.raises(ValueError, match="shots must be different numbers"):
        DemonstrationConfig(shots=(1, 1))
    with pytest.raises(ValueError, match="label_words are pairs"):
        TaskColumnConfig(label_words=("yes",))


def ask(directory, tmp_path, tasks, **changes):
    """Ask a model tasks without an example."""
    demonstrations = DemonstrationConfig(shots=(0,))
    paths = {"model": (directory,), "task": tasks, "output_dir": tmp_path / "out"}
    return measure_in_context(InContextConfig(**paths, demonstrations=demonstrations, **changes), say=lambda text: None)


def test_files_of_one_name_are_tasks_of_their_own(directory, tmp_path):
    tasks = []
    for folder, label in (("a", "x"), ("b", "y")):
        (tmp_path / folder).mkdir()
        rows = [{"text": "q", "label": label, "choices": ["x", "y"]}]
        tasks.append(write_lines(tmp_path / folder / "dev.jsonl", rows))
    report = ask(directory, tmp_path, tuple(tasks))
    assert [task.name for task in report.tasks] == ["a/dev.jsonl", "b/dev.jsonl"]
    assert [point.num_examples for point in report.points] == [1, 1]
    assert sum(point.accuracy for point in report.points) == 1


def test_a_quantised_model_is_as_large_as_before(directory, tmp_path):
    task = write_lines(tmp_path / "dev.jsonl", [{"text": "q", "label": "x", "choices": ["x", "y"]}])
    sizes = [ask(directory, tmp_path, (task,), dtype=dtype).models[0].parameters for dtype in ("fp32", "int8")]
    assert sizes[0] == sizes[1] == num_parameters(GPTForCausalLM.from_pretrained(directory))


def test_mistakes_are_told_before_a_model_is_asked(directory, tmp_path):
    task = write_lines(tmp_path / "dev.jsonl", [{"text": "q", "label": n, "instruction": f"Do {n}"} for n in (0, 1)])
    layout = LayoutConfig(instruction=("Do:",))
    with pytest.raises(ValueError, match="'instruction' must be the same in all rows"):
        ask(directory, tmp_path, (task,))
    with pytest.raises(ValueError, match="label_words gives a word for 'no', which is the answer of no row"):
        ask(directory, tmp_path, (task,), layout=layout, columns=TaskColumnConfig(label_words=("no=0", "1=yes")))
    lines = write_lines(tmp_path / "lines.jsonl", [{"text": "q", "label": label} for label in ("a\n", "a\nb")])
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2: the answer 'a\\nb' holds a line end"):
        ask(directory, tmp_path, (lines,), scoring="generation")
    ask(directory, tmp_path, (lines,), scoring="likelihood")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "t5"}')
    config = InContextConfig(
        model=(directory, tmp_path / "other"), task=(task,), output_dir=tmp_path / "out", layout=layout,
        demonstrations=DemonstrationConfig(shots=(0,)),
    )  # fmt: skip
    said = []
    with pytest.raises(ValueError, match="a model of type 't5'"):
        measure_in_context(config, say=said.append)
    with pytest.raises(ValueError, match="2 shots need as many examples to draw from, and there are 1"):
        measure_in_context(replace(config, demonstrations=DemonstrationConfig(shots=(0, 2))), say=said.append)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="must be a directory"):
        measure_in_context(replace(config, model=(directory,), output_dir=tmp_path / "file"), say=said.append)
    assert not said


def test_two_models_two_tasks(directory, tmp_path):
    larger = tiny_model(tmp_path / "larger", width=24)
    letters = [{"prompt": f"{a}{b}", "completion": a} for a in "ABCD" for b in "wxyz"]
    first = write_lines(tmp_path / "first.jsonl", letters)
    sums = [{"prompt": f"{a}+{b}", "completion": str(a + b)} for a in range(5, 10) for b in range(10, 90, 10)]
    second = write_lines(tmp_path / "sums.jsonl", sums)
    config = InContextConfig(
        model=(larger, directory), task=(first, second), output_dir=tmp_path / "out", max_examples=10,
        demonstrations=DemonstrationConfig(shots=(2, 0, 1), num_seeds=2),
    )  # fmt: skip
    told = []
    report = measure_in_context(config, say=told.append)
    assert [task.scoring for task in report.tasks] == ["likelihood", "generation"]
    assert report.tasks[0].chance == pytest.approx(0.25) and report.tasks[1].chance is None
    assert [model.name for model in report.models] == ["tiny", "larger"]
    assert all(model.is_unchanged for model in report.models)
    # One draw without examples; with them two seeds, with true and with shuffled answers.
    assert len(report.runs) == len(told) == 2 * 2 * (1 + 2 * 4)
    assert {run.num_examples for run in report.runs} == {10}
    saved = json.loads((tmp_path / "out" / "in_context.json").read_text())
    assert saved["prompts"]["first, 0 shots"].endswith(" =>")
    assert len(saved["points"]) == 2 * 2 * 5
    own = [
        run.accuracy
        for run in report.runs
        if (run.model, run.task, run.shots, run.answers) == ("tiny", "first", 2, "true")
    ]
    point = next(p for p in report.points if (p.model, p.task, p.shots, p.answers) == ("tiny", "first", 2, "true"))
    assert point.accuracy == pytest.approx(statistics.fmean(own))
    assert point.low <= point.accuracy <= point.high
    lines = (tmp_path / "out" / "in_context.csv").read_text().splitlines()
    assert len(lines) == 1 + len(report.runs) and lines[0].startswith("model,parameters,task,shots")
    for figure in ("accuracy_by_shots.png", "accuracy_by_size.png"):
        assert (tmp_path / "out" / figure).stat().st_size > 10_000
    again = measure_in_context(config, say=told.append)
    assert again.runs == report.runs


def test_a_changed_weight_changes_the_hash(directory):
    model = GPTForCausalLM.from_pretrained(directory)
    before = weights_sha256(model)
    assert before == weights_sha256(GPTForCausalLM.from_pretrained(directory))
    with torch.no_grad():
        model.gpt.final_norm.bias[3] += 1e-6
    assert weights_sha256(model) != before
    assert len(weights_sha256(model.to(torch.bfloat16))) == 64


def test_names_that_tell_directories_apart(tmp_path):
    paths = [tmp_path / "a" / "model", tmp_path / "b" / "model"]
    assert unique_names(paths) == ["a/model", "b/model"]
    assert unique_names(paths[:1]) == ["model"]
