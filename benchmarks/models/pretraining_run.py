"""Pretraining on two books beside a Hugging Face loop: the same batches, masks and first weights, step by step.

Without dropout both must show the same held-out loss at every step; with dropout, which both draw for themselves, the
curves only run together.
"""

import csv
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import real_data
from benchmarks.comparison import OURS, Comparison
from benchmarks.models.batches import tokenizer_of_bert
from benchmarks.models.training_step import TrainingStep, adamw, loss_of_fastssl, saved
from benchmarks.peers import hugging_face
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch, timed
from fastssl.data.batch import PackedBatch
from fastssl.data.dataset import PretrainingData
from fastssl.data.encode import encode_files
from fastssl.data.held_out import hold_out
from fastssl.data.objectives import ObjectiveConfig
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.presets import preset

PEER = "HF loop"
BOOKS = ("corpus/kjv.txt", "corpus/moby_dick.txt")
STEPS = {("bert-tiny", 0.0): 30, ("bert-tiny", 0.1): 12, ("bert-mini", 0.0): 20, ("bert-mini", 0.1): 8}
"""(preset, dropout) -> optimizer steps."""
QUICK_STEPS = 10
BATCH_SIZE, LENGTH, SEED = 16, 128, 3
LEARNING_RATE, MAX_GRAD_NORM = 5e-4, 1.0
EVALUATIONS = 4
HELD_OUT_FRACTION, HELD_OUT_TOKENS = 0.02, 6000
SAME_LOSS = 1e-3
"""Largest relative difference of held-out losses that counts as the same: float32 rounding, grown over the steps."""


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return each preset without and with dropout; in a quick run, the smallest without."""
    if run.quick:
        return {"bert-tiny, no dropout": partial(comparison, "bert-tiny", 0.0, QUICK_STEPS, run.output_dir)}
    return {
        f"{name}, {f'dropout {dropout_p}' if dropout_p else 'no dropout'}": partial(
            comparison, name, dropout_p, steps, run.output_dir
        )
        for (name, dropout_p), steps in STEPS.items()
    }


@dataclass
class Curve:
    """What one contender's run shows."""

    seconds: list[float] = field(default_factory=list)
    """Time of each step, its batch included, without evaluations."""
    held_out: dict[int, float] = field(default_factory=dict)
    """Steps taken -> held-out loss."""


def comparison(preset_name: str, dropout_p: float, steps: int, output_dir: Path) -> Comparison:
    """Train both for some steps, in turn; the ratios leave out the first step, the curves and the remark count it.

    Args:
        preset_name: of the model.
        dropout_p: at every site of both models.
        steps: optimizer steps.
        output_dir: where the curves go.
    """
    train, held_out = books()
    torch.manual_seed(SEED)
    config = replace(preset(preset_name), hidden_dropout_prob=dropout_p, attention_probs_dropout_prob=dropout_p)
    ours = BertForMaskedLM(config).train()
    with saved(ours) as directory:
        peer = hugging_face.load(directory)

    def padded_batch(step: int) -> dict[str, Tensor]:
        return hugging_face.inputs(train.batch(0, step))

    start = partial(TrainingStep, max_grad_norm=MAX_GRAD_NORM)
    runs = {
        OURS: start(ours, loss_of_fastssl, partial(train.batch, 0), _optimizer(ours)),
        PEER: start(peer, hugging_face.loss, padded_batch, _optimizer(peer)),
    }
    evaluate = {
        OURS: lambda: held_out_loss(ours, loss_of_fastssl, held_out),
        PEER: lambda: held_out_loss(peer, lambda m, batch: hugging_face.loss(m, hugging_face.inputs(batch)), held_out),
    }
    curves = {name: Curve() for name in runs}
    every = max(steps // EVALUATIONS, 1)

    def check() -> None:
        for name, curve in curves.items():
            curve.held_out[0] = evaluate[name]()
        assert_same_losses(curves)

    def finish() -> str:
        if not dropout_p:
            assert_same_losses(curves)
        name = preset_name if not dropout_p else f"{preset_name}-dropout"
        write_curves(curves, output_dir / "pretraining_run" / name)
        return remark(curves)

    return Comparison(
        contenders={name: _recorded(runs[name], curves[name], evaluate[name], every) for name in runs},
        check=check,
        effort=Effort(seconds=0.0, min_rounds=steps - 1, max_rounds=steps - 1, warmup_rounds=1),
        finish=finish,
    )


@cache
def books() -> tuple[PretrainingData, list[PackedBatch]]:
    """Return the training data of both books, and batches of documents held out, under bert-base-uncased's tokens."""
    tokenizer = tokenizer_of_bert()
    files = [real_data.file(name) for name in BOOKS]
    folder = tempfile.TemporaryDirectory(prefix="fastssl-benchmark-")
    shards = encode_files(files, tokenizer, folder.name, progress=False)
    rest, held = hold_out(shards, HELD_OUT_FRACTION, seed=SEED, max_tokens=HELD_OUT_TOKENS)
    objective = ObjectiveConfig(max_seq_length=LENGTH)
    train = PretrainingData(rest, tokenizer.special, objective, seed=SEED, batch_size=BATCH_SIZE)
    evaluation = PretrainingData(held, tokenizer.special, objective, seed=SEED + 1, batch_size=BATCH_SIZE)
    # The shards are mapped, so the folder may go as soon as its files are open.
    held_out = [evaluation.batch(0, index) for index in range(evaluation.num_batches(0))]
    folder.cleanup()
    return train, held_out


def held_out_loss(
    model: nn.Module, loss: Callable[[nn.Module, PackedBatch], Tensor], batches: list[PackedBatch]
) -> float:
    """Return the mean loss per predicted token over batches, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        total = sum(loss(model, batch).item() * batch.masked_labels.numel() for batch in batches)
    model.train()
    return total / sum(batch.masked_labels.numel() for batch in batches)


def assert_same_losses(curves: Mapping[str, Curve]) -> None:
    """Raise AssertionError unless both held-out losses agree at every evaluation."""
    for step, found in curves[OURS].held_out.items():
        expected = curves[PEER].held_out[step]
        difference = abs(found - expected) / expected
        assert difference <= SAME_LOSS, f"held-out loss after {step} steps: {found}, {PEER} {expected}"


def remark(curves: Mapping[str, Curve]) -> str:
    """Return the run in a sentence: losses, how far they lie apart, whole times."""
    ours, peer = curves[OURS], curves[PEER]
    steps = max(ours.held_out)
    apart = max(abs(ours.held_out[step] - peer.held_out[step]) for step in ours.held_out)
    seconds, peer_seconds = sum(ours.seconds), sum(peer.seconds)
    return (
        f"{steps} steps take the held-out loss from {ours.held_out[0]:.3f} to {ours.held_out[steps]:.3f} "
        f"({PEER}: {peer.held_out[steps]:.3f}; at most {apart:.1e} apart at any evaluation) in {seconds:.1f} s "
        f"({PEER}: {peer_seconds:.1f} s, {peer_seconds / seconds:.2f} times as long)"
    )


def write_curves(curves: Mapping[str, Curve], stem: Path) -> None:
    """Write the curves as CSV and as a picture beside it."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["contender", "step", "seconds_so_far", "held_out_loss"])
        for name, curve in curves.items():
            for step, loss in curve.held_out.items():
                writer.writerow([name, step, f"{sum(curve.seconds[:step]):.4f}", f"{loss:.6f}"])
    _draw(curves, stem)


def _draw(curves: Mapping[str, Curve], stem: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axis, by_time in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
        for (name, curve), style in zip(curves.items(), ("o-", "x--"), strict=True):
            places = [sum(curve.seconds[:step]) if by_time else step for step in curve.held_out]
            axis.plot(places, list(curve.held_out.values()), style, label=name)
        axis.set_xlabel("seconds of training" if by_time else "steps")
        axis.legend()
    figure.axes[0].set_ylabel("held-out masked-LM loss")
    figure.suptitle(f"{stem.name}, {BATCH_SIZE} x {LENGTH} tokens a step", fontsize=10)
    figure.savefig(stem.with_suffix(".png"), dpi=120)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return adamw(model, fused=True, learning_rate=LEARNING_RATE)


def _recorded(step: TrainingStep, curve: Curve, evaluate: Callable[[], float], every: int) -> Launch:
    train = timed(step)

    def launch() -> float:
        curve.seconds.append(train())
        if step.steps % every == 0:
            curve.held_out[step.steps] = evaluate()
        return curve.seconds[-1]

    return launch
