"""The verb `demo tasks`, on few examples."""

import json
import re
import shlex
from pathlib import Path

import pytest

from fastssl.cli.main import main
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.tasks.demo_tasks import DEMO_TASKS, DemoTask

DEMOS = {demo.name: demo for demo in DEMO_TASKS}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A body as `fastssl demo` leaves one, but small and untrained."""
    directory = tmp_path_factory.mktemp("demo")
    texts = [value for demo in DEMO_TASKS for row in demo.examples()[:50] for value in row.values()]
    tokenizer = Tokenizer.train_wordpiece([text for text in texts if isinstance(text, str)], vocab_size=400)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=160,
    )
    BertForMaskedLM(config).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


def test_four_tasks_are_learnt_twice_and_shown(model, tmp_path, capsys):
    arguments = ["demo", "tasks", "--model", str(model), "--output-dir", str(tmp_path), "--num-threads", "1"]
    arguments += ["--max-examples", "20", "--num-train-epochs", "1"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for name, demo in DEMOS.items():
        line = re.search(rf"^{name} .*%.*% +([\d.]+%)", shown, re.MULTILINE)
        assert line, shown
        assert (tmp_path / name / "from-scratch" / "model.safetensors").is_file()
        rows = (tmp_path / name / "pretrained" / "metrics.jsonl").read_text().splitlines()
        assert line[1] == f"{max(json.loads(row).get(f'eval_{demo.metric}', 0) for row in rows):.1%}"
    commands = [line.split("fastssl ")[1] for line in shown.splitlines() if line.startswith("  fastssl ")]
    assert len(commands) == 4
    for command in commands:
        assert main(shlex.split(command)) == 0


@pytest.mark.parametrize(
    ("name", "train", "held_out", "expected"),
    [
        ("module", [{"label": "a"}, {"label": "b"}, {"label": "a"}], [{"label": "a"}, {"label": "b"}], 0.5),
        (
            "tokens",
            [{"words": ["x", "x", "("], "tags": ["name", "call", "operator"]}, {"words": ["x"], "tags": ["call"]}],
            [{"words": ["x", "(", "unseen", "x"], "tags": ["call", "operator", "name", "name"]}],
            0.5,
        ),
        ("function", [], [{"context": "def a()\ndef b()"}, {"context": "def a()\ndef b()\ndef c()\ndef d()"}], 0.375),
    ],
)
def test_what_a_guess_would_score(name, train, held_out, expected):
    demo: DemoTask = DEMOS[name]
    assert demo.guess(train, held_out) == pytest.approx(expected)


def test_mistakes_are_told(tmp_path, capsys):
    assert main(["demo", "tasks", "--model", str(tmp_path / "nowhere")]) == 1
    assert "run `fastssl demo` first" in capsys.readouterr().err
    assert main(["demo", "tasks", "--max-examples", "3"]) == 1
    assert "max_examples must be at least 20, got 3" in capsys.readouterr().err
