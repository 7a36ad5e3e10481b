"""Hugging Face's Trainer, as a fine-tuning script calls it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch.utils.data import SequentialSampler


def train(
    directory: Path,
    examples: Sequence[dict],
    pause: Callable[[], None],
    *,
    batch_size: int,
    learning_rate: float,
    output_dir: Path,
    model_class: str = "AutoModelForSequenceClassification",
    collator_class: str = "DataCollatorWithPadding",
    num_labels: int = 2,
) -> None:
    """Fine-tune without end, in the order of the examples, padding each batch to its longest sequence.

    Its defaults are left as they are: fused AdamW, clipping at 1.0, a linear schedule.

    Args:
        directory: of model and tokenizer; its head is drawn anew.
        examples: encoded, with "label" or "labels".
        pause: called at the end of each step.
        batch_size: sequences per batch.
        learning_rate: peak of the schedule.
        output_dir: where it might write.
        model_class: of `transformers`.
        collator_class: of `transformers`, made of the tokenizer.
        num_labels: of the head.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(train_dataset or self.train_dataset)

    class Pausing(transformers.TrainerCallback):
        def on_step_end(self, *_, **__) -> None:
            pause()

    arguments = transformers.TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        max_steps=1_000_000,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = getattr(transformers, model_class).from_pretrained(directory, num_labels=num_labels)
    collator = getattr(transformers, collator_class)(transformers.AutoTokenizer.from_pretrained(directory))
    InOrder(model, arguments, train_dataset=list(examples), data_collator=collator, callbacks=[Pausing()]).train()
