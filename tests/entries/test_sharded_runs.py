"""A GPT under FSDP2 in two processes: sharded in training, not in its files; and a process that dies."""

import json
import shutil

import pytest
import torch
from run_results import metrics, same, tensors
from several_processes import CALLBACK, launched
from text_sets import SMALL, write_set

import eval as evaluation
import train
from models import gpt
from storage import manifest

pytestmark = pytest.mark.slow

PARTS = [f"optimizer-0000{number}-of-00002" for number in (1, 2)]


@pytest.fixture
def home(tmp_path, in_root, monkeypatch):
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    write_set(tmp_path / "home" / "datasets" / "a")
    (tmp_path / "recipe.yaml").write_text(f"callbacks: [{CALLBACK}]\nlearning_rate: 0.01\n")
    return tmp_path


def words(out, *more, batch=4):
    small = SMALL.replace("--batch_size 4", f"--batch_size {batch}").split()
    recipe = ["--training_config", out.parent / "recipe.yaml", "--dataset", "a", "--grad_clip", "0.5", *small]
    return [str(word) for word in [*recipe, "--out_dir", out, *more, "--set", "report_to=none"]]


def sharded(out, *more, code=0, **environment):
    done = launched("fsdp2.yaml", words(out, *more), **environment)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def close(left, right, **tolerance):
    """Compare the final weights, losses and gradient norms."""
    torch.testing.assert_close(tensors(left), tensors(right), **tolerance)
    for key in ("loss", "grad_norm", "eval_loss"):
        assert metrics(left, key) == pytest.approx(metrics(right, key), rel=tolerance["rtol"], abs=tolerance["atol"])


def same_state(left, right):
    """Compare the weights and both parts of the optimizer state bit for bit."""
    for name in ("model", *PARTS):
        assert same(left / f"{name}.safetensors", right / f"{name}.safetensors"), name


def test_sharded_training_equals_training_in_one_process(home):
    (home / "wrote").mkdir()
    done = sharded(home / "two", WROTE=home / "wrote")
    train.main(words(home / "one", batch=8))
    near = {"rtol": 0, "atol": 1e-5}
    close(home / "two", home / "one", **near)

    # Rank 0 prints and writes; rank 1 writes its part of the optimizer state only.
    for line in ("model: gpt", "learning rate schedule", "final model in"):
        assert done.stdout.count(line) == 1
    first, second = (json.loads((home / "wrote" / f"{rank}.json").read_text()) for rank in (0, 1))
    of_second = {name.rpartition("/")[2] for name in second if str(home / "two") in name and "." in name[-16:]}
    assert {name.split(".")[-2] for name in of_second if not name.startswith(".")} == {PARTS[1]}
    assert not [name for name in second if name.endswith(("model.safetensors", "metrics.jsonl", "manifest.json"))]
    assert any(name.endswith("model.safetensors") for name in first)

    # Each rank held one half; the model files are whole.
    saved = home / "two" / "checkpoint-6"
    halves = [json.loads((saved / f"{name}.json").read_text())["tensors"] for name in PARTS]
    name = "token_embedding.weight/exp_avg"
    assert [half[name] for half in halves] == [
        {"shape": [64, 16], "offset": [first, 0], "cut": [0]} for first in (0, 32)
    ]
    assert tensors(saved / f"{PARTS[1]}.safetensors")[name].shape == (32, 16)
    assert manifest.verify(saved) is None and manifest.read(saved)["world_size"] == 2
    assert manifest.verify(home / "two") is None
    plain, other = (gpt.load(home / folder) for folder in ("two", "one"))
    ids = torch.arange(8)[None]
    torch.testing.assert_close(plain(input_ids=ids)["logits"], other(input_ids=ids)["logits"], rtol=0, atol=1e-4)
    scores = [evaluation.main(["--checkpoint", str(home / folder), "--device", "cpu"]) for folder in ("two", "one")]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], abs=1e-5)

    # The launcher gets SIGTERM; both ranks save the same step, and the same command resumes.
    done = sharded(home / "parts", code=1, TROUBLE="launcher:4:0")
    assert done.stdout.count("preempted by SIGTERM at step") == 1 and "Traceback" not in done.stdout
    (left,) = [path for path in (home / "parts").glob("checkpoint-*") if path.name != "checkpoint-3"]
    assert left.name in ("checkpoint-4", "checkpoint-5") and manifest.verify(left) is None
    shutil.copytree(home / "parts", home / "alone")
    sharded(home / "parts", "--init_from", "resume")
    same_state(home / "parts" / "checkpoint-6", saved)
    close(home / "parts", home / "two", rtol=0, atol=0)

    # One process resumes from two, and two from one.
    train.main(words(home / "alone", "--init_from", "resume", batch=8))
    close(home / "alone", home / "two", **near)
    shutil.rmtree(home / "one" / "checkpoint-6")
    sharded(home / "one", "--init_from", "resume")
    close(home / "one", home / "two", **near)


@pytest.mark.parametrize(("config", "trouble"), [("ddp.yaml", "error:2:1"), ("fsdp2.yaml", "full:3:1 kill:5:1")])
def test_a_process_that_dies_ends_the_job(home, config, trouble):
    """A part that cannot be written is a failed save and does not end the run."""
    done = launched(config, words(home / "out"), TROUBLE=trouble)
    assert done.returncode not in (0, 75)
    if trouble.startswith("error"):
        assert "RuntimeError: an error of this test" in done.stderr and "several_processes.py" in done.stderr
    else:
        assert "Signal 9 (SIGKILL)" in done.stderr
        assert "ERROR: checkpoint-3" in done.stderr
        assert metrics(home / "out", "loss").keys() >= {1, 2, 3, 4}  # training continued
        assert not [path for path in (home / "out").iterdir() if path.is_dir()]
    assert not (home / "out" / "model.safetensors").exists()
