import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.training.curves import draw_curves
from fastssl.training.log import Curves, MetricsFile, TensorBoardEvents, read_metrics


def rows(steps):
    return [{"step": step, "loss": 1 / step, "learning_rate": 0.1, "eval_masked_lm_accuracy": 0.5} for step in steps]


@settings(deadline=None, max_examples=40)
@given(written=st.integers(0, 12), start=st.integers(0, 12), cut=st.integers(0, 40))
def test_a_resumed_file_holds_each_step_once(tmp_path_factory, written, start, cut):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(range(1, written + 1))))
    # A kill may cut the last line anywhere.
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)] if written else b"")
    whole = len(read_metrics(path))
    file = MetricsFile(path, start)
    for row in rows(range(start + 1, start + 4)):
        file.write(row)
    file.close()
    kept = min(whole, start)
    assert read_metrics(path) == rows([*range(1, kept + 1), *range(start + 1, start + 4)])


def test_rows_can_be_read_while_the_run_goes_on(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write({"step": 1, "loss": 2.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5}]
    file.close()
    assert read_metrics(tmp_path / "nothing.jsonl") == []


def test_tensorboard_has_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = TensorBoardEvents(tmp_path, 0)
    for row in rows([1, 2]):
        events.write(row)
    events.flush()
    events.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == {"train/loss", "train/learning_rate", "eval/masked_lm_accuracy"}
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]


def test_curves_are_drawn_at_the_end_and_not_at_each_checkpoint(tmp_path):
    curves = Curves(tmp_path)
    curves.finish()
    assert not (tmp_path / "curves.png").exists(), "nothing to draw"
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows([1, 2, 3])))
    curves.flush()
    assert not (tmp_path / "curves.png").exists()
    curves.finish()
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize("content", [rows([1]), [{"step": 1, "eval_loss": 2.0}], rows(range(1, 2000))])
def test_any_rows_make_a_picture(tmp_path, content):
    from matplotlib.image import imread

    draw_curves(content, tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").std() > 0.01
