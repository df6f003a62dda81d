"""`push_to_hub` is refused before training if the hub cannot be reached or does not know the token."""

import io
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from torch import nn

from loader.checks.runtime_checks import check_data, check_forward, check_hub, check_loggers, is_hub_error
from loader.resolve.resolver import resolve


class Unreachable(HfHubHTTPError):
    """What the hub's client raises without a network has no answer of the hub."""

    def __init__(self):
        Exception.__init__(self, "Name or service not known")
        self.response = None


class Refused(Unreachable):
    def __init__(self):
        super().__init__()
        self.response = SimpleNamespace(status_code=401)


@pytest.mark.parametrize(
    ("error", "word"), [(Unreachable(), "reached"), (Refused(), "401"), (LocalTokenNotFoundError("none"), "hub_token")]
)
def test_a_hub_that_cannot_take_the_model(in_root, monkeypatch, error, word):
    def whoami(self, token):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", whoami)
    run, args = resolve(None, ["push_to_hub=true"]), SimpleNamespace(push_to_hub=True, process_index=0, hub_token=None)
    with pytest.raises(ValueError) as raised:
        check_hub(run, args)
    assert str(raised.value).startswith("`push_to_hub: true` in --set: ") and word in str(raised.value)
    check_hub(run, SimpleNamespace(push_to_hub=False, process_index=0))
    check_hub(run, SimpleNamespace(push_to_hub=True, process_index=1))


def test_an_error_of_this_program_is_none_of_the_hub(in_root, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda self, token: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_hub(resolve(), SimpleNamespace(push_to_hub=True, process_index=0, hub_token=None))
    assert not is_hub_error(OSError("disk")) and is_hub_error(Unreachable())


@pytest.mark.parametrize(
    ("environment", "netrc", "refused"),
    [
        ({}, "", True),
        ({"WANDB_API_KEY": "0" * 40}, "", False),
        ({"WANDB_MODE": "offline"}, "", False),
        ({}, "machine api.wandb.ai login user password 0000\n", False),
        ({"WANDB_BASE_URL": "https://wandb.lab"}, "machine api.wandb.ai login user password 0000\n", True),
    ],
)
def test_wandb_without_a_key_is_one_line(tmp_path, monkeypatch, environment, netrc, refused):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    for name, value in {"NETRC": str(tmp_path / "netrc"), **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    check_loggers(SimpleNamespace(report_to=[], process_index=0))
    check_loggers(SimpleNamespace(report_to=["wandb"], process_index=1))
    arguments = SimpleNamespace(report_to=["tensorboard", "wandb"], process_index=0)
    if not refused:
        check_loggers(arguments)
        return
    with pytest.raises(ValueError) as caught:
        check_loggers(arguments)
    assert "logging.mode" in str(caught.value) and "\n" not in str(caught.value)


class Takes(nn.Module):
    def forward(self, rows, label=None, mask=None):
        return rows


@pytest.mark.parametrize(
    ("batch", "options", "named"),
    [
        ({"rows": 1, "label": 2}, {}, None),
        ({"rows": 1, "labels": 2}, {}, "`labels`"),
        ({"label": 2}, {}, "`rows`"),
        ({"rows": 1, "index": 2}, {"remove_unused_columns": True}, None),
        ({"rows": 1, "index": 2}, {"loss": "withholds entries"}, None),
        ({"row": 1}, {"train_transform": lambda batch, generator: batch}, None),  # it may rename entries
    ],
)
def test_a_forward_takes_the_entries_of_a_batch(batch, options, named):
    run = SimpleNamespace(
        loss=options.get("loss"), model=SimpleNamespace(name="own.net"), dataset=SimpleNamespace(name="own.table"),
        place=lambda path: " at x.yaml:2:3",
    )  # fmt: skip
    args = SimpleNamespace(remove_unused_columns=options.get("remove_unused_columns", False))
    bundle = SimpleNamespace(
        train_dataset=[0], collate=lambda rows: batch, train_transform=options.get("train_transform")
    )
    if named is None:
        check_forward(run, args, bundle, Takes())
        return
    with pytest.raises(ValueError, match=named) as error:
        check_forward(run, args, bundle, Takes())
    assert "x.yaml:2:3" in str(error.value) and ", ".join(batch) in str(error.value)


def test_a_recipes_evaluation_is_left_out_where_nothing_is_held_out(in_root, tmp_path):
    """Only an evaluation that the user asks for needs held-out data."""
    from transformers.trainer_utils import IntervalStrategy

    file, bundle = tmp_path / "a.yaml", SimpleNamespace(eval_datasets={}, sampler=lambda seed: range(9))
    args = SimpleNamespace(
        eval_strategy=IntervalStrategy.EPOCH, dataloader_drop_last=False, train_batch_size=1, world_size=1,
        eval_on_start=False, load_best_model_at_end=False,
    )  # fmt: skip
    file.write_text("dataset: {train_dataset: {crop_size: 16}}\n")
    run = resolve(training_config=file)
    assert run.process.check_val_every_n_epoch == 1
    check_data(run, args, bundle)
    assert args.eval_strategy == "no" and run.process.check_val_every_n_epoch is None
    file.write_text("dataset: {train_dataset: {crop_size: 16}}\ncheck_val_every_n_epoch: 2\n")
    with pytest.raises(ValueError, match="check_val_every_n_epoch` at "):
        check_data(resolve(training_config=file), args, bundle)
