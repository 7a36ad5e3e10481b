"""EleutherAI's lm-evaluation-harness: its model of Hugging Face directories."""

from collections.abc import Callable
from pathlib import Path


def scorer(directory: Path, batch_size: int) -> Callable[[list[tuple[list[int], list[int]]]], list[tuple[float, bool]]]:
    """Return its scoring of (context, continuation) tokens with a directory's model, which has a tokenizer."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(directory), device="cpu", batch_size=batch_size, dtype="float32")

    def score(requests: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        # The texts tell requests apart where it remembers contexts.
        named = [((str(context), str(continuation)), context, continuation) for context, continuation in requests]
        return model._loglikelihood_tokens(named, disable_tqdm=True)

    return score
