"""`global_batch_size` against a search over all splits; what cannot be is refused with what can."""

import pytest

from loader.checks import static_checks
from loader.command_line.parser import HyperArguments
from loader.errors import ConfigError
from loader.output import render
from loader.resolve.global_batch_size import divisors
from loader.resolve.resolver import read_saved, resolve


def batch(run):
    return run.hyper.per_device_train_batch_size, run.trainer.get("gradient_accumulation_steps")


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write_file


@pytest.mark.parametrize("number", [1, 2, 12, 36, 97, 1024])
def test_divisors(number):
    assert divisors(number) == [index for index in range(1, number + 1) if number % index == 0]


@pytest.mark.parametrize(
    ("wanted", "processes", "expected"),
    [
        (8, 1, (8, 1)),
        (24, 1, (8, 3)),
        (24, 2, (6, 2)),
        (4, 1, (4, 1)),
        (7, 1, (7, 1)),
        (26, 2, (1, 13)),
        (13, 13, (1, 1)),
    ],
)
def test_nothing_else_said(in_root, monkeypatch, wanted, processes, expected):
    """The batch per device stays 8 where that divides; otherwise it is the largest that does, and is below."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    run = resolve(HyperArguments(global_batch_size=wanted))
    assert batch(run) == expected and run.origins()["gradient_accumulation_steps"] == "global_batch_size"


@pytest.mark.slow
def test_one_of_the_two_said(in_root, write, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert batch(resolve(HyperArguments(global_batch_size=24, per_device_train_batch_size=3))) == (3, 4)
    assert batch(resolve(HyperArguments(global_batch_size=24), ["gradient_accumulation_steps=4"])) == (12 // 4, 4)
    both = write("per_device_train_batch_size: 5\ngradient_accumulation_steps: 4\n")  # an earlier layer's suggestion
    assert batch(resolve(HyperArguments(global_batch_size=24), training_config=both)) == (4, 3)
    assert batch(resolve(HyperArguments(global_batch_size=40), training_config=both)) == (5, 4)
    same = write("global_batch_size: 24\nbatch_size: 6\n")  # another word for the batch per device
    assert batch(resolve(training_config=same)) == (6, 2)


@pytest.mark.parametrize(
    ("flags", "settings", "processes", "says"),
    [
        ({"global_batch_size": 24}, [], 5, "`global_batch_size: 24` on the command line"),
        ({"global_batch_size": 24, "per_device_train_batch_size": 5}, [], 1, "1, 2, 3, 4, 6, 8, 12, 24"),
        ({"global_batch_size": 24}, ["gradient_accumulation_steps=5"], 2, "12 samples a step for each of 2 processes"),
        (
            {"global_batch_size": 24, "per_device_train_batch_size": 4},
            ["gradient_accumulation_steps=4"],
            1,
            "`per_device_train_batch_size: 4` on the command line and `gradient_accumulation_steps: 4` in --set",
        ),
        ({"global_batch_size": 24}, ["tune_batch_size=true"], 1, "both choose the batch size; keep one"),
        ({"global_batch_size": 10**12}, [], 1, "is more than 1,000,000,000 samples"),
    ],
)
def test_what_cannot_be(in_root, monkeypatch, flags, settings, processes, says):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ConfigError) as refused:
        resolve(HyperArguments(**flags), settings)
    assert len(refused.value.problems) == 1 and says in refused.value.problems[0]


@pytest.mark.slow
def test_what_is_printed_means_the_same_on_other_processes(in_root, write, monkeypatch):
    """run.yaml says what came out, and is solved anew by whoever reads it."""
    text = render.as_yaml(resolve(HyperArguments(global_batch_size=24, max_steps=3)))
    assert "# gradient_accumulation_steps: 3  # global_batch_size" in text
    assert batch(resolve(training_config=write(text))) == (8, 3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert batch(resolve(training_config=write(text))) == (6, 1)
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert read_saved(write(text)).hyper.global_batch_size == 24  # as it was, whatever was launched now


def test_the_summary_shows_the_product(in_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = resolve(HyperArguments(global_batch_size=24, output_dir=str(tmp_path / "out")))
    assert static_checks.check_run(run) == []
    assert "batch 6 per device × 2 accumulated × 2 processes = 24" in render.summary(run)
