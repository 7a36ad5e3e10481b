"""Where the time of a training step goes: the share of every part, by PyTorch's profiler."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from fastssl.models.bert_config import BertConfig
from fastssl.tasks.step_benchmark import TrainingStep

REST = "Python and small operators"

_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}
"""Operator -> place of its left operand."""
_PARTS = (
    ("fastssl::attention", "attention"),
    ("fastssl::layer_norm", "layer norms with residual and dropout"),
    ("fastssl::softmax_cross_entropy", "softmax cross-entropy"),
    ("fastssl::bias_gelu", "activation"),
    ("aten::gelu", "activation"),
    ("fastssl::adamw", "optimizer"),
    ("aten::_fused_adamw", "optimizer"),
    ("fastssl::sum_of_squares", "clipping"),
    ("aten::_foreach", "clipping"),
    ("aten::linalg_vector_norm", "clipping"),
    ("aten::fill_", "filling with zeros"),
    ("aten::zero_", "filling with zeros"),
    ("aten::copy_", "copies"),
    ("aten::add", "sums of gradients and biases"),
    ("aten::sum", "sums of gradients and biases"),
    ("aten::embedding", "lookups"),
    ("aten::index", "lookups"),
)
"""Beginning of an operator's name -> its part; the first that fits."""


@dataclass(frozen=True, kw_only=True)
class StepPart:
    """One line of a profile."""

    part: str
    """What is done."""
    seconds: float
    """Time of one step that it takes itself, on the calling thread."""
    share: float
    """Of the step, 0 ... 1."""
    flops: float = 0.0
    """Of its matrix products, in one step."""

    @property
    def flops_per_second(self) -> float:
        """Rate of its matrix products."""
        return self.flops / self.seconds


def profile_step(step: TrainingStep, config: BertConfig, *, steps: int = 3) -> list[StepPart]:
    """Run a training step of BERT under the profiler and return its parts, the largest first.

    What the profiler itself costs, some microseconds an operator, falls to the parts with many small ones.

    Args:
        step: one training step, already warm.
        config: of its model; its widths and the batch's rows tell the products apart.
        steps: how many to take the mean over.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(steps):
            step()
    events = profiler.events()
    total = (max(event.time_range.end for event in events) - min(event.time_range.start for event in events)) / 1e6
    rows = (step.batch.num_tokens, step.batch.masked_labels.numel())
    seconds, flops = _add_up(events, rows, config)
    seconds[REST] += total - sum(seconds.values())
    parts = [
        StepPart(part=part, seconds=seconds[part] / steps, share=seconds[part] / total, flops=flops[part] / steps)
        for part in seconds
    ]
    return sorted(parts, key=lambda part: part.seconds, reverse=True)


def _add_up(events: EventList, rows: Sequence[int], config: BertConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Return part -> seconds and part -> FLOPs of products, over all events; `rows` are those of products."""
    seconds: dict[str, float] = defaultdict(float)
    flops: dict[str, float] = defaultdict(float)
    for event in events:
        part = REST
        if event.name in _PRODUCTS:
            left, right = event.input_shapes[_PRODUCTS[event.name] :][:2]
            sizes = [*left, right[-1]]
            part = _part_of_product(sizes, rows, config)
            flops[part] += 2.0 * math.prod(sizes)
        else:
            part = next((part for prefix, part in _PARTS if event.name.startswith(prefix)), REST)
        seconds[part] += event.self_cpu_time_total / 1e6
    return seconds, flops


def _part_of_product(sizes: Sequence[int], rows: Sequence[int], config: BertConfig) -> str:
    """Tell a linear map by the two widths of its weight, which are two of the three sizes of each of its products."""
    widths = list(sizes)
    found = [size for size in sizes if size in rows]
    if found:
        widths.remove(found[0])
    for width, part in (
        (config.vocab_size, "products: vocabulary"),
        (config.intermediate_size, "products: feed-forward"),
        (3 * config.hidden_size, "products: queries, keys, values"),
    ):
        if width in widths:
            return part
    return "products: attention's output, head"


def draw_profile(parts: Sequence[StepPart], title: str, path: Path) -> None:
    """Draw the shares as bars, largest on top, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.4 * len(parts) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = ["tab:blue" if part.flops else "tab:orange" for part in parts]
    bars = axes.barh([part.part for part in parts], [100 * part.share for part in parts], color=colors)
    axes.bar_label(bars, [f"{part.share:.1%}, {part.seconds * 1e3:,.1f} ms" for part in parts], padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("% of the step (blue: matrix products of the library)")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
