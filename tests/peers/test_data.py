"""Data sets, loaders and batches."""

import pytest
import torch
from peer_code import At, Line, Points, Stream
from torch import nn


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_attributes_of_the_loaders_data_set_are_those_of_the_data_set(make, workers):
    """A curriculum: the third epoch and later ones have other samples."""
    data = Points(8)
    trainer = make(train_dataset=data, max_steps=6, dataloader_num_workers=workers)

    def harder(args, state, control, train_dataloader, **kwargs):
        assert train_dataloader.dataset is data
        if state.global_step == 4:
            train_dataloader.dataset.scale = 100.0

    trainer.add_callback(At("on_epoch_begin", harder))
    trainer.train()
    means = [batch.abs().mean().item() > 10 for batch in trainer.model.seen]
    assert means == [False] * 4 + [True] * 2


@pytest.mark.slow
def test_a_batch_key_of_any_name_reaches_the_model(make):
    class Tagged(Points):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"sample_index": torch.tensor(index)}

    class Takes(Line):
        def forward(self, x, labels=None, sample_index=None):
            self.tags = [*getattr(self, "tags", []), *sample_index.tolist()]
            return super().forward(x, labels)

    trainer = make(model=Takes(), train_dataset=Tagged())
    trainer.train()
    assert sorted(trainer.model.tags) == list(range(16))


@pytest.mark.slow
def test_columns_that_no_forward_names_are_removed_before_the_collate_function(make):
    class Noted(Points):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"note": f"sample {index}"}

    def collate(samples):
        assert all(sorted(sample) == ["labels", "x"] for sample in samples)
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    trainer = make(train_dataset=Noted(), data_collator=collate)
    trainer.train()
    assert len(trainer.model.seen) == 4


@pytest.mark.slow
def test_batches_that_are_lists(make, peer):
    class Positional(peer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(*inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def collate(samples):
        return [torch.stack([sample[name] for sample in samples]) for name in ("x", "labels")]

    trainer = make(kind=Positional, data_collator=collate, eval_dataset=None)
    trainer.train()
    assert trainer.state.global_step == 4 and len(trainer.model.seen) == 4


@pytest.mark.slow
def test_a_trainer_without_training_data_evaluates_and_predicts(make):
    trainer = make(train_dataset=None)
    assert trainer.evaluate()["eval_loss"] > 0 and len(trainer.predict(Points(5)).predictions) == 5
    with pytest.raises(ValueError):
        trainer.train()


@pytest.mark.slow
def test_streaming_data_train(make):
    trainer = make(train_dataset=Stream(), max_steps=7)
    trainer.train()
    first = [round(100 * batch[0, 0].item()) for batch in trainer.model.seen]
    assert first == [0, 4, 8, 12, 16, 100, 104]


def test_streaming_data_need_max_steps(make):
    with pytest.raises(ValueError):
        make(train_dataset=Stream(), max_steps=-1, num_train_epochs=1)


@pytest.mark.slow
def test_a_loss_of_a_subclass_is_averaged_over_micro_batches(make, peer):
    class Absolute(peer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = (outputs["prediction"] - labels).abs().mean()
            return (loss, outputs) if return_outputs else loss

    data = Points(8)
    parts = make(
        kind=Absolute, train_dataset=data, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    whole = make(kind=Absolute, train_dataset=data, max_steps=2, per_device_train_batch_size=8)
    for trainer in (parts, whole):
        trainer.train()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, parts.model.state_dict()[name], rtol=1e-4, atol=1e-6)
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (parts, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert parts.evaluate()["eval_loss"] == pytest.approx(whole.evaluate()["eval_loss"], rel=1e-4)


class Tokens(torch.utils.data.Dataset):
    """Sequences of 6 tokens, of which a different number carries no loss."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        tokens = torch.randint(1, 9, (6,), generator=torch.Generator().manual_seed(index))
        labels = tokens.clone()
        labels[: index % 5] = -100
        return {"input_ids": tokens, "labels": labels}


class Bigrams(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 9)

    def forward(self, input_ids, labels=None, **more):
        return {"logits": self.table(input_ids)}


@pytest.mark.slow
def test_a_loss_function_gets_the_items_of_the_whole_step(make):
    counts = []

    def loss(outputs, labels, num_items_in_batch=None):
        counts.append(int(num_items_in_batch))
        return (
            nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), reduction="sum")
            / num_items_in_batch
        )

    common = {"train_dataset": Tokens(), "eval_dataset": Tokens(), "compute_loss_func": loss, "max_steps": 2}
    parts = make(model=Bigrams(), per_device_train_batch_size=2, gradient_accumulation_steps=4, **common)
    whole = make(model=Bigrams(), per_device_train_batch_size=8, **common)
    items = sum(int((sample["labels"] != -100).sum()) for sample in map(Tokens().__getitem__, range(8)))
    for trainer in (parts, whole):
        trainer.train()
    assert counts == [items] * 10
    torch.testing.assert_close(parts.model.table.weight, whole.model.table.weight, rtol=1e-5, atol=1e-6)


def test_the_loss_of_an_evaluation_with_a_loss_function_is_a_mean_over_its_items(make):
    def loss(outputs, labels, num_items_in_batch=None):
        return (
            nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), reduction="sum")
            / num_items_in_batch
        )

    trainer = make(model=Bigrams(), eval_dataset=Tokens(), compute_loss_func=loss, per_device_eval_batch_size=8)
    samples = [Tokens()[index] for index in range(8)]
    tokens, labels = (torch.stack([sample[name] for sample in samples]) for name in ("input_ids", "labels"))
    expected = nn.functional.cross_entropy(trainer.model.table(tokens).flatten(0, 1), labels.flatten()).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


class Lengths(torch.utils.data.Dataset):
    """Sequences of 1 to 16 tokens, shuffled."""

    lengths = torch.randperm(64, generator=torch.Generator().manual_seed(3)).remainder(16).add(1).tolist()

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"input_ids": torch.full((self.lengths[index],), 1 + index % 8), "labels": torch.tensor([index])}


def pad(samples):
    ids = nn.utils.rnn.pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
    return {"input_ids": ids, "labels": torch.cat([sample["labels"] for sample in samples])}


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.read = nn.Parameter(torch.ones(())), []

    def forward(self, input_ids, labels):
        self.read.append(labels.tolist())
        return {"loss": (self.weight * input_ids.float().mean()) ** 2}


@pytest.mark.slow
def test_samples_grouped_by_length(make, peer):
    settings = {
        "train_sampling_strategy": "group_by_length",
        "max_steps": 32,
        "save_strategy": "steps",
        "save_steps": 5,
    }
    trainer = make(model=Reads(), train_dataset=Lengths(), data_collator=pad, eval_dataset=None, **settings)
    trainer.train()
    read = trainer.model.read
    for epoch in (read[:16], read[16:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(64))
        spreads = [max(lengths) - min(lengths) for batch in epoch for lengths in [[Lengths.lengths[i] for i in batch]]]
        assert sum(spreads) / len(spreads) < 5  # 9 at random
    assert read[:16] != read[16:]
    if peer.__module__.startswith("trainer."):  # the order is a function of seed and epoch
        again = make(model=Reads(), train_dataset=Lengths(), data_collator=pad, eval_dataset=None, **settings)
        again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-20")
        assert again.model.read == read[20:]
