"""What tests of predict.py share: its calls, its outputs, and a tiny ACT on images."""

import json

import h5py
import pytest
from demonstration_files import write_act_episode
from small_runs import BASE, SmallRuns

import predict
from loader.command_line.entry import command_line

VISION = """\
history_images_length: 2
model: {name: act, hidden_dim: 16, num_heads: 2, feedforward_dim: 16, encoder_layers: 1, decoder_layers: 1,
  latent_dim: 4, cvae_layers: 1, backbone: resnet10, n_action_steps: 2}
"""
CAMERA = "observations/images/top"


def refused(capsys, *words):
    """The one error line of a call that leaves with exit code 2 and prints nothing else."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command_line(predict.main, [*map(str, words)])
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and output.out == "", output
    return errors[0]


def predicted(*words):
    """Lines of the file that predict.py writes; the first word is the input."""
    output = words[0].parent / "predicted.jsonl"
    predict.main(["--input", *map(str, words), "--output", str(output)])
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def actions(path):
    """Key -> predicted chunks of a file that predict.py wrote."""
    found = {}
    with h5py.File(path) as root:
        root.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def train_on_images(folder):
    """A run of ACT on two frames of a camera, two steps long, in `folder`/out; returns its Trainer."""
    runs = SmallRuns(folder)
    for index in range(2):
        write_act_episode(folder / "episodes" / f"episode_{index}.hdf5", 8, cameras={"top": (40, 56)}, seed=index)
    base = BASE.replace("TASK", str(folder / "task.yaml")).replace("CACHE", str(folder / "cache"))
    base = base.replace("model_config: mlp\n", "model_config: act\n")
    (folder / "base.yaml").write_text(base.replace("model: {hidden_dim: 8, hidden_layers: 1}\n", ""))
    return runs(VISION, max_steps=2)


def observations(folder, index):
    """What a robot would send, step by step, for an episode of `train_on_images`."""
    with h5py.File(folder / "episodes" / f"episode_{index}.hdf5") as root:
        rows = {key: root[key][()] for key in ("observations/qpos", CAMERA)}
    return [{key: values[step] for key, values in rows.items()} for step in range(8)]
