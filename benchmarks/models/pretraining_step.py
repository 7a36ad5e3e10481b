"""A masked-LM training step of BERT, dropout and optimizer included, beside Hugging Face."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks import real_data
from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import LinearShape, sgemm_of
from benchmarks.models import batches
from benchmarks.models.training_step import (
    TrainingStep,
    adamw,
    assert_same_step,
    in_turn,
    loss_of_fastssl,
    our_adamw,
    saved,
)
from benchmarks.own_process import OwnProcess
from benchmarks.peers import hugging_face, torch_compile
from benchmarks.suites import Run
from benchmarks.timing import Effort, Launch, timed
from fastssl.allocator import keep_freed_memory
from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_config import BertConfig
from fastssl.models.cost import flops_per_token
from fastssl.models.presets import preset

BASE_EFFORT = Effort(seconds=30.0, min_rounds=3, max_rounds=12, warmup_rounds=1)
SMALL_EFFORT = Effort(seconds=8.0, min_rounds=4, max_rounds=50, warmup_rounds=1)
QUICK_EFFORT = Effort(seconds=4.0, min_rounds=3, max_rounds=20, warmup_rounds=1)
NATURAL_BATCHES = 3
CHECKED_SEQUENCES = 2
NARROW = BertConfig(
    vocab_size=2000,
    hidden_size=64,
    num_hidden_layers=12,
    num_attention_heads=1,
    intermediate_size=64,
    max_position_embeddings=64,
)
"""As deep as BERT-base and so narrow that on a few tokens a step is what happens between the operators."""
BATCHES_FILE = "batches.pt"


def cases(run: Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return steps on dense batches, on sentences of natural length, of small models on running text, and of nearly
    no arithmetic."""
    natural = {
        "SST-2 sentences, batch 32": partial(batches.sst2, NATURAL_BATCHES, 32),
        "wikitext lines <= 128, batch 16": partial(batches.wikitext, NATURAL_BATCHES, 16),
    }
    if run.quick:
        make = partial(comparison, effort=QUICK_EFFORT)
        return {
            f"bert-mini, {name}": partial(make, preset("bert-mini"), source) for name, source in natural.items()
        } | {"bert-tiny, kjv 16x128": partial(make, preset("bert-tiny"), kjv)}
    base, small = (partial(comparison, effort=effort) for effort in (BASE_EFFORT, SMALL_EFFORT))
    dense = partial(batches.dense, 1, 8, 128, vocab_size=preset("bert-base").vocab_size)
    return {
        "bert-base, dense 8x128": partial(base, preset("bert-base"), dense, plain_adamw=True, compiled=True),
        **{f"bert-base, {name}": partial(base, preset("bert-base"), source) for name, source in natural.items()},
        "bert-tiny, kjv 16x128": partial(small, preset("bert-tiny"), kjv, compiled=True),
        "bert-mini, kjv 16x128": partial(small, preset("bert-mini"), kjv, compiled=True),
        "12 layers of width 64, dense 2x4": partial(small, NARROW, narrow),
    }


def kjv() -> list[PackedBatch]:
    """Return batches of 16 x 128 tokens of the King James Bible."""
    return batches.windows(real_data.file("corpus/kjv.txt"), 4, 16, length=128)


def narrow() -> list[PackedBatch]:
    """Return a batch of eight tokens."""
    return batches.dense(1, 2, 4, vocab_size=NARROW.vocab_size, mask_rate=0.3)


def comparison(
    config: BertConfig,
    source: Callable[[], list[PackedBatch]],
    *,
    effort: Effort,
    plain_adamw: bool = False,
    compiled: bool = False,
) -> Comparison:
    """Compare the step of a model with Hugging Face eager and the fused AdamW that its Trainer takes.

    Every contender lives in a process of its own, with its own copy of the same weights, and takes the same batches in
    the same order. Hugging Face pads each batch to its longest sequence.

    Args:
        config: of the model.
        source: makes the batches.
        effort: how long to measure.
        plain_adamw: whether Hugging Face with PyTorch's default AdamW is a peer too.
        compiled: whether Hugging Face through torch.compile is a peer too.
    """
    packed = source()
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    with saved(model) as directory:
        torch.save(packed, directory / BATCHES_FILE)
        peers = {"HF eager, fused AdamW": partial(step_of_hugging_face, fused_adamw=True)}
        if plain_adamw:
            peers = {"HF eager, plain AdamW": partial(step_of_hugging_face, fused_adamw=False)} | peers
        if compiled:
            peers["HF compiled, fused AdamW"] = partial(step_of_hugging_face, fused_adamw=True, through_compiler=True)
        contenders = {
            name: OwnProcess(partial(build, directory)) for name, build in ({OURS: step_of_fastssl} | peers).items()
        }

    def check() -> None:
        with saved(model) as directory:
            assert_same_step(directory, batches.first_sequences(packed[0], CHECKED_SEQUENCES))

    return Comparison(
        contenders=contenders,
        check=check,
        work=sum(useful_flops(config, batch) for batch in packed) / len(packed),
        unit="FLOP",
        limit=sgemm_of(linear_shapes(config, packed)),
        effort=effort,
    )


def step_of_fastssl(directory: Path) -> Launch:
    """Return our step from the weights and batches of a directory, in a process that keeps its memory as ours do."""
    keep_freed_memory()
    model = BertForMaskedLM.from_pretrained(directory).train()
    packed = torch.load(directory / BATCHES_FILE, weights_only=False)
    return timed(TrainingStep(model, loss_of_fastssl, in_turn(packed), our_adamw(model)))


def step_of_hugging_face(directory: Path, *, fused_adamw: bool, through_compiler: bool = False) -> Launch:
    """Return Hugging Face's step on the same batches, padded."""
    model = hugging_face.load(directory)
    padded = [hugging_face.inputs(batch) for batch in torch.load(directory / BATCHES_FILE, weights_only=False)]
    loss = torch_compile.compiled(hugging_face.loss) if through_compiler else hugging_face.loss
    return timed(TrainingStep(model, loss, in_turn(padded), adamw(model, fused=fused_adamw)))


def useful_flops(config: BertConfig, batch: PackedBatch) -> float:
    """Return the FLOPs that a step on real tokens needs: no padding, no unlabelled row in the head."""
    lengths = batch.cu_seqlens.diff().double()
    attended = float(lengths.square().sum() / lengths.sum())
    predicted = batch.masked_labels.numel() / batch.num_tokens
    return batch.num_tokens * flops_per_token(config, attended, predicted)


def linear_shapes(config: BertConfig, packed: list[PackedBatch]) -> list[LinearShape]:
    """Return the linear maps of a step on a batch of mean size."""
    tokens = sum(batch.num_tokens for batch in packed) // len(packed)
    predicted = sum(batch.masked_labels.numel() for batch in packed) // len(packed)
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return [
        LinearShape(rows=tokens, inputs=width, outputs=3 * width, count=layers),
        LinearShape(rows=tokens, inputs=width, outputs=width, count=layers),
        LinearShape(rows=tokens, inputs=width, outputs=inner, count=layers),
        LinearShape(rows=tokens, inputs=inner, outputs=width, count=layers),
        LinearShape(rows=predicted, inputs=width, outputs=width),
        LinearShape(rows=predicted, inputs=width, outputs=config.vocab_size),
    ]
