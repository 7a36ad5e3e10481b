"""The demonstration of GPT: pretrained in minutes on text that every Python carries, it writes before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastssl.data.tokenizer import Tokenizer
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.tasks.demo import DemoConfig, training_settings
from fastssl.tasks.generation.text_generator import TextGenerator
from fastssl.tasks.gpt_pretraining_config import (
    CausalCorpusConfig,
    CausalObjectiveConfig,
    CausalVocabularyConfig,
    GptModelConfig,
    GptPretrainingConfig,
    GptTrainingConfig,
)
from fastssl.tasks.pretraining_config import BatchConfig

PROMPTS = (
    "Return the number of",
    "If the file does not exist,",
    "This module provides",
    "The default value is",
)
"""Written for the demonstration, in the language of the corpus."""


@dataclass(frozen=True, kw_only=True)
class DemoGptConfig(DemoConfig):
    """The demonstration's few choices."""

    output_dir: Path = Path("runs/demo-gpt")
    """Where the corpus, the run and the trained model go."""
    time_budget_minutes: float = 2.5
    """Minutes of training."""


def demo_gpt_pretraining(config: DemoGptConfig, corpus: Path) -> GptPretrainingConfig:
    """Return the run of the demonstration: four layers of width 192, byte pairs, by a time budget."""
    return GptPretrainingConfig(
        corpus=CausalCorpusConfig(train_files=(corpus,), document_separator="", eval_fraction=0.03),
        vocabulary=CausalVocabularyConfig(vocab_size=2048),
        model=GptModelConfig(preset="gpt2-nano", hidden_size=192, dropout=0.0),
        objective=CausalObjectiveConfig(max_seq_length=128),
        batches=BatchConfig(tokens_per_batch=1024),
        training=GptTrainingConfig(**training_settings(config), learning_rate=3e-3, warmup_ratio=0.03),
    )


def write_on(
    model: GPTForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str] = PROMPTS, *, seed: int = 0
) -> list[str]:
    """Let a model write a few dozen tokens from each prompt, drawn among the likelier ones; returns what it added."""
    texts = TextGenerator(model, tokenizer)(prompts, max_new_tokens=48, temperature=0.7, top_p=0.9, seed=seed)
    return [text.text for text in texts]
