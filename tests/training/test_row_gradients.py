"""Sparse gradients of embeddings train as dense ones do."""

import pytest
import torch

from fastssl.training.optimizer import clip_gradients
from fastssl.training.row_gradients import RowGradients
from tests.training.stand_in import StandInModel, make_trainer, weights_of

pytestmark = pytest.mark.usefixtures("metrics_only")


class ReadingModel(StandInModel):
    """Reads the embedding by its own module, so that its gradient can be sparse."""

    def __init__(self, sparse: bool = False):
        super().__init__()
        self.embedding.sparse = sparse

    def forward(self, batch, *, loss_denominators=None):
        logits = self.decoder(self.dropout(self.norm(self.embedding(batch.tokens))))
        loss = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        count = batch.targets.numel()
        metrics = {"masked_lm_loss_sum": loss.detach(), "masked_lm_count": torch.tensor(count)}
        return type("Output", (), {"loss": loss / loss_denominators["masked_lm"], "metrics": metrics})

    @classmethod
    def from_pretrained(cls, directory):
        model = cls()
        model.load_state_dict(StandInModel.from_pretrained(directory).state_dict())
        return model


def test_the_same_weights_come_out(tmp_path):
    settings = {"max_steps": 12, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    results = [
        make_trainer(tmp_path / str(sparse), model=ReadingModel(sparse), **settings).train() for sparse in (False, True)
    ]
    dense, sparse = (weights_of(result.checkpoint) for result in results)
    for name, value in dense.items():
        torch.testing.assert_close(sparse[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_resumed_they_end_in_the_same_weights(tmp_path):
    whole = make_trainer(tmp_path / "whole", model=ReadingModel(True), max_steps=8).train()
    make_trainer(tmp_path / "parts", model=ReadingModel(True), max_steps=8, save_steps=4).train()
    (tmp_path / "parts" / "checkpoint-8").rename(tmp_path / "aside")
    settings = {"max_steps": 8, "save_steps": 4, "resume_from_checkpoint": "last"}
    resumed = make_trainer(tmp_path / "parts", model=ReadingModel(True), **settings).train()
    wanted = weights_of(whole.checkpoint)
    assert all(torch.equal(value, wanted[name]) for name, value in weights_of(resumed.checkpoint).items())


def test_clipping_sees_every_word_once_and_the_table_is_zero_again():
    table = torch.nn.Embedding(10, 3, sparse=True)
    (table(torch.tensor([4, 7, 4])).sum() * 2).backward()
    optimizer = torch.optim.SGD([table.weight], lr=1.0)
    # Word 4 was read twice: three numbers of 4, and three of 2.
    norm = (3 * 16 + 3 * 4) ** 0.5
    assert clip_gradients(optimizer, 1.0).item() == pytest.approx(norm)
    assert clip_gradients(optimizer, 0.0).item() == pytest.approx(1.0, rel=1e-5)
    rows = RowGradients()
    with rows.dense([table.weight]):
        seen = table.weight.grad.clone()
    assert table.weight.grad is None
    assert seen[4].tolist() == pytest.approx([4 / norm] * 3) and seen[7].tolist() == pytest.approx([2 / norm] * 3)
    assert seen.count_nonzero() == 6
    table(torch.tensor([0])).sum().backward()
    with rows.dense([table.weight]):
        assert table.weight.grad.count_nonzero() == 3
