"""What a BERT with one linear map over its outputs is, whether these stand for sequences or for tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.models import bert_files
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_with_head import BertWithHead
from fastssl.models.pretrained import read_config
from fastssl.nn.dropout import dropout, site_seeds
from fastssl.nn.init import initialize


class BertWithClassifier(BertWithHead):
    """A body `bert` and a head ``classifier(dropout(rows))``; what the rows are, and the loss, is the subclass's.

    Args:
        config: its sizes, and the names of its labels.
        add_pooling_layer: whether the body has the dense layer over the first token.
    """

    class_weights: Tensor | None

    def __init__(self, config: BertConfig, *, add_pooling_layer: bool) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.register_buffer("class_weights", None, persistent=False)
        initialize(self.classifier, config.initializer_range)

    def set_class_weights(self, weights: Sequence[float] | Tensor | None) -> None:
        """Multiply the loss of each target by the weight of its class from now on; C numbers, or None for ones.

        The sum is still divided by the number of targets, so weights whose mean over the training examples is one
        leave the size of the loss as it was. They are not saved.
        """
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=torch.float32, device=self.classifier.weight.device)
            if weights.shape != (self.config.num_labels,):
                raise ValueError(
                    f"class weights must be one number for each of the {self.config.num_labels} labels "
                    f"{', '.join(self.config.label_names)}, got shape {tuple(weights.shape)}"
                )
        self.class_weights = weights

    def set_dropout(self, p: float) -> None:
        """Use the dropout probability `p` at every site from now on."""
        super().set_dropout(p)
        self.bert.config = replace(self.config, classifier_dropout=None)

    def _classify(self, rows: Tensor, seed: Tensor | None) -> Tensor:
        """Return the numbers (R, C) of rows (R, E) of the body's outputs; `seed` is of the step's dropout, if any."""
        config = self.config
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        site = None
        if seed is not None and p > 0:
            # The head's own dropout is the site behind those of the encoder, of the same step.
            site = site_seeds(seed.to(rows.device, non_blocking=True), 2 + 3 * config.num_hidden_layers)[-1]
        return self.classifier(dropout(rows, p, site, backend=self.bert.encoder.backend))

    @classmethod
    def _start(
        cls, directory: str | Path, labels: Sequence[str] | None, **changes: object
    ) -> tuple[BertConfig, tuple[str, ...]]:
        """Return the config for a directory's weights and the parts that do not go on from them.

        The head is drawn anew where the names of the labels are others, or where the directory's head, of the same
        name in the file, is one for another task.
        """
        config = bert_files.load_config(directory)
        own = cls.__name__ in (read_config(directory).get("architectures") or [cls.__name__])
        same = labels is None or tuple(labels) == config.label_names
        if labels is not None:
            changes["labels"] = tuple(labels)
        return replace(config, **changes), () if own and same else ("classifier.",)


def expect_classes(labels: Tensor, shape: str, num_labels: int, remedy: str = "") -> None:
    """Check that labels are the numbers of classes; the values, where reading them does not make a GPU wait.

    Args:
        labels: expected to be one-dimensional, int64.
        shape: what that dimension is, for the error, such as "(B)".
        num_labels: C, above every label.
        remedy: ends the error about shape and dtype.

    Raises:
        ValueError: where they are not.
    """
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise ValueError(
            f"labels must be {shape} int64 classes below {num_labels}, got {tuple(labels.shape)} {labels.dtype}{remedy}"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        low, high = (bound.item() for bound in labels.aminmax())
        if low < 0 or high >= num_labels:
            wrong = low if low < 0 else high
            raise ValueError(f"labels must be at least 0 and below {num_labels}, the labels of the head, got {wrong}")
