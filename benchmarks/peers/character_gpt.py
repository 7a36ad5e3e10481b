"""A small GPT and its training loop in plain PyTorch, by nanoGPT's recipe for a CPU.

Its model: learned positions, pre-norm blocks, exact GELU, PyTorch's causal attention, no biases, no dropout, the head
tied to the word embedding. Its AdamW is PyTorch's as the recipe makes it on a CPU: neither fused nor compiled.

Source: Karpathy, "nanoGPT" (github.com/karpathy/nanoGPT), `train.py config/train_shakespeare_char.py --device=cpu
--compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128
--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0`; written anew.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalBlock(nn.Module):
    """One block.

    Args:
        width: E.
        num_heads: H.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, E) to (B, T, E)."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class CharacterGPT(nn.Module):
    """The model.

    Args:
        vocab_size: V.
        width: E.
        num_layers: L.
        num_heads: H.
        context: T, longest sequence.
    """

    def __init__(self, vocab_size: int, width: int, num_layers: int, num_heads: int, context: int) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(CausalBlock(width, num_heads) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * num_layers) if writes else 0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of targets (B, T) after inputs (B, T), int64 both."""
        x = self.word(inputs) + self.position(torch.arange(inputs.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.word.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(
    model: nn.Module,
    batch_of: Callable[[int], tuple[Tensor, Tensor]],
    after: Callable[[int], None],
    *,
    steps: int,
    learning_rate: float,
    least_learning_rate: float,
    warmup_steps: int,
    betas: tuple[float, float],
    weight_decay: float,
    max_grad_norm: float,
) -> None:
    """Train a model, and read its loss at each step as the recipe does to log it.

    Args:
        model: to be trained.
        batch_of: step, from 0 -> inputs and targets.
        after: called with the number of steps that are done.
        steps: optimizer steps.
        learning_rate, least_learning_rate: at the end of the warm-up, and at the end.
        warmup_steps: in which it rises.
        betas, weight_decay: of AdamW; matrices alone decay.
        max_grad_norm: of the gradient that is clipped.
    """
    matrices, vectors = ([p for p in model.parameters() if (p.dim() >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
    for step in range(steps):
        rate = _cosine(step, learning_rate, least_learning_rate, warmup_steps, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(*batch_of(step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        after(step + 1)


def _cosine(step: int, peak: float, lowest: float, warmup_steps: int, steps: int) -> float:
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return lowest + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - lowest)
