"""The verb `compare-init`, as a person calls it."""

import pytest

from fastssl.cli.main import main
from tests.tasks.test_finetuning import metrics_only, pretrained, write_examples  # noqa: F401


@pytest.fixture
def arguments(pretrained, tmp_path) -> list[str]:  # noqa: F811
    train, dev = (str(write_examples(tmp_path / f"{name}.tsv", seed=i)) for i, name in enumerate(("train", "dev")))
    sizes = ["--per-device-train-batch-size", "8", "--learning-rate", "3e-3", "--num-threads", "1"]
    files = ["--train-file", train, "--eval-file", dev, "--output-dir", str(tmp_path / "out")]
    return ["compare-init", "--model", str(pretrained), *files, *sizes]


def test_two_curves(arguments, tmp_path, capsys):
    arguments += ["--num-train-epochs", "2"]
    assert main([*arguments, "--threshold", "0.6", "--threshold-of", "score"]) == 0
    told = capsys.readouterr().out
    assert "of 2 epochs" in told and "accuracy 0.6: pretrained after" in told and "compare_init.png" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "pretrained",
        "from-scratch",
        "compare_init.png",
        "compare_init.csv",
        "compare_init.json",
    }
    assert main(arguments) == 1
    assert "--resume-from-checkpoint last" in capsys.readouterr().err
    assert main([*arguments, "--resume-from-checkpoint", "last"]) == 0
    assert "smoothed training loss" in capsys.readouterr().out


def test_label_budgets(arguments, tmp_path, capsys):
    assert main([*arguments, "--label-budget", "4", "8", "--num-seeds", "2", "--min-steps", "2"]) == 0
    told = capsys.readouterr().out
    assert "mean and standard deviation over 2 seeds" in told and "±" in told and "label_budget.png" in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--from-scratch"], "from_scratch is one of the two starts"),
        (["--label-budget", "1", "--output-dir", "{folder}/other"], "below the number of classes, 2"),
        (["--label-budget", "1000", "--output-dir", "{folder}/other"], "above the number of training examples, 400"),
        (["--label-budget", "4,lots"], "got 'lots'"),
        (["--text-column", "words"], "no column 'words'"),
    ],
)
def test_mistakes_are_told(arguments, tmp_path, capsys, more, message):
    assert main(arguments + [one.replace("{folder}", str(tmp_path)) for one in more]) == 1
    assert message in capsys.readouterr().err
