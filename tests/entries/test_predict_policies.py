"""predict.py on policies: against the network's matrices by hand, and eval.py's policy."""

import io
import json
import shutil
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from demonstration_files import write_act_episode
from predictions import CAMERA, actions, observations, refused, train_on_images
from small_runs import SmallRuns

import eval as evaluation
import predict
from loader.command_line.entry import command_line


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A perceptron on states, trained for a few steps; the recordings stay for prediction."""
    runs = SmallRuns(tmp_path_factory.mktemp("policy"))
    runs()
    shutil.rmtree(runs.folder / "cache")
    return runs.folder


def chunks_by_hand(folder, states):
    """(T, C, A): zscore by statistics.json, the network's two layers as matrices, and back."""
    from safetensors.torch import load_file

    weights = {name: value.double().numpy() for name, value in load_file(folder / "model.safetensors").items()}
    state, action = (json.loads((folder / "statistics.json").read_text())[name] for name in ("state", "action"))
    hidden = (states - state["mean"]) / np.maximum(state["std"], 0.01)
    hidden = np.maximum(hidden @ weights["trunk.0.weight"].T + weights["trunk.0.bias"], 0)
    chunks = (hidden @ weights["head.weight"].T + weights["head.bias"]).reshape(len(states), 3, -1)
    return chunks * np.maximum(action["std"], 0.01) + action["mean"]


@pytest.mark.slow
def test_chunks_for_every_recorded_observation(policy, tmp_path):
    """Of a folder, of one file, and at any batch size; actions are not read."""
    episodes = policy / "episodes"
    file = tmp_path / "sub/no_actions.h5"
    written = write_act_episode(file, steps=7, seed=9, replace={"action": None})
    shutil.copy(episodes / "episode_1.hdf5", tmp_path)
    words = ["--checkpoint", str(policy / "out"), "--output", str(tmp_path / "out.h5df")]
    results = []
    for size in (1, 5, 64):
        predict.main(["--input", str(tmp_path), *words, "--batch_size", str(size)])
        results.append(actions(tmp_path / "out.h5df"))
    assert list(results[0]) == ["episode_1.hdf5/actions", "sub/no_actions.h5/actions"]
    with h5py.File(episodes / "episode_1.hdf5") as root:
        states = [root["observations/qpos"][()], written["observations/qpos"]]
    for (name, found), state in zip(results[0].items(), states, strict=True):
        assert found.shape == (len(state), 3, 14) and found.dtype == np.float64
        np.testing.assert_allclose(found, chunks_by_hand(policy / "out", state), rtol=1e-5, atol=1e-5)
        for other in results[1:]:
            np.testing.assert_allclose(other[name], found, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_standard_input_is_a_recording_too(policy, tmp_path, monkeypatch, capsys):
    content = (policy / "episodes/episode_0.hdf5").read_bytes()
    words = ["--checkpoint", str(policy / "out"), "--input", "-", "--output", str(tmp_path / "out.h5")]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    predict.main(words)
    with h5py.File(policy / "episodes/episode_0.hdf5") as root:
        expected = chunks_by_hand(policy / "out", root["observations/qpos"][()])
    np.testing.assert_allclose(actions(tmp_path / "out.h5")["-/actions"], expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"text")))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command_line(predict.main, words)
    assert "<stdin>" in (said := capsys.readouterr().err) and "/tmp" not in said


@pytest.mark.slow
def test_a_bad_recording_is_left_out_whole(policy, tmp_path, capsys):
    folder = tmp_path / "in"
    good = write_act_episode(folder / "c.hdf5", steps=5, seed=1)
    whole = good["observations/qpos"]
    late = whole.copy()
    late[3, 2] = np.nan
    write_act_episode(folder / "a.hdf5", steps=5, replace={"observations/qpos": late})
    write_act_episode(folder / "b.hdf5", steps=5, replace={"observations/qpos": None})
    write_act_episode(folder / "d.hdf5", steps=5, replace={"observations/qpos": whole[:, :9]})
    content = (folder / "c.hdf5").read_bytes()
    (folder / "e.hdf5").write_bytes(content[: len(content) // 2])
    output = tmp_path / "out.h5"
    words = ["--checkpoint", str(policy / "out"), "--input", str(folder), "--output", str(output)]
    predict.main([*words, "--batch_size", "2"])
    assert list(actions(output)) == ["c.hdf5/actions"] and actions(output)["c.hdf5/actions"].shape == (5, 3, 14)
    errors = capsys.readouterr().err.splitlines()
    for line, name, reason in zip(
        errors, "abde", ("nan at step 3", "no dataset `obs", "9 dimensions", "cannot"), strict=False
    ):
        assert line.startswith("error: ") and str(folder / f"{name}.hdf5") in line and reason in line, line
    assert len(errors) == 5 and "5 inputs predicted; 4 with errors" in errors[-1]
    output.write_text("before")
    assert "a.hdf5" in refused(capsys, *words, "--strict")
    assert output.read_text() == "before" and sorted(tmp_path.iterdir()) == [folder, output]


def test_compressed_frames_are_decoded(tmp_path):
    """Items of a recording with PNG frames are those of the same recording with plain ones."""
    import cv2

    from data.demonstrations.processor import Processor
    from data.processor import Source

    plain = write_act_episode(tmp_path / "plain.h5", 4, cameras={"top": (20, 24)})
    key = "observations/images/top"
    images = [cv2.imencode(".png", frame)[1].ravel() for frame in plain[key]]
    rows = np.zeros((4, max(map(len, images))), np.uint8)
    for row, image in zip(rows, images, strict=True):
        row[: len(image)] = image
    write_act_episode(tmp_path / "png.h5", 4, cameras={"top": (20, 24)}, replace={key: rows})
    encoder = Processor(None, None, ["observations/qpos"], [key], None, 1)
    sources = [Source(name, tmp_path / name) for name in ("plain.h5", "png.h5")]
    for one, other in zip(*(encoder.read(source) for source in sources), strict=True):
        assert np.array_equal(one.raw[key], other.raw[key]) and one.raw[key].shape == (20, 24, 3)
    rows[2, 30:] = 0
    write_act_episode(tmp_path / "png.h5", 4, cameras={"top": (20, 24)}, replace={key: rows})
    with pytest.raises(ValueError, match=f"png.h5: {key} step 2"):
        list(encoder.read(sources[1]))


LAB = """
import numpy as np
from data.demonstrations import *
from data.demonstrations import Config, PROCESS_KEYS, build, check
from data.demonstrations import processor
from dataclasses import dataclass
from storage.config_keys import key


@dataclass
class PredictFlags:
    scale: float = key(1.0, "Lab: factor of the actions.", gt=0)


class Processor(processor.Processor):
    SUFFIXES, WHOLE_FILES, TO_STDOUT, SERVES = (".csv",), False, True, False

    @classmethod
    def from_pretrained(cls, folder, config, process, flags=None):
        made = super().from_pretrained(folder, config, process)
        made.scale = flags.scale
        return made

    def read(self, source):
        with source.open() as stream:
            for number, line in enumerate(stream, 1):
                yield processor.Item(source, f"{source}:{number}", line)

    def encode(self, raw):
        return super().encode({"observations/qpos": np.fromstring(raw.decode(), sep=",")})

    def decode(self, outputs):
        return [self.scale * chunk[0] for chunk in super().decode(outputs)]

    def writer(self, target):
        return Lines(target)


class Lines:
    def __init__(self, target):
        self.target = target

    def write(self, source, record):
        self.target.write((",".join(map(str, record)) + "\\n").encode())

    def close(self):
        pass
"""


@pytest.mark.slow
def test_a_kind_of_data_of_ones_own(tmp_path, capsys, monkeypatch):
    """Another module brings its input format, its output and a flag; predict.py knows none of them."""
    (tmp_path / "own_lab").mkdir()
    (tmp_path / "own_lab/__init__.py").write_text("")
    (tmp_path / "own_lab/tables.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    runs = SmallRuns(tmp_path / "runs")
    task = runs.folder / "task.yaml"
    task.write_text(task.read_text().replace("name: demonstrations", "name: own_lab.tables"))
    runs()
    states = np.random.default_rng(0).normal(size=(5, 14))
    rows = [",".join(map(str, row)) for row in states]
    (tmp_path / "in.csv").write_text("\n".join([*rows[:2], "1,2", *rows[2:]]) + "\n")
    words = ["--checkpoint", runs.folder / "out", "--input", tmp_path / "in.csv", "--batch_size", 2]
    capsys.readouterr()
    predict.main([*map(str, words), "--scale", "2"])
    output = capsys.readouterr()
    found = np.array([[float(value) for value in line.split(",")] for line in output.out.splitlines()])
    np.testing.assert_allclose(found, 2 * chunks_by_hand(runs.folder / "out", states)[:, 0], rtol=1e-5, atol=1e-5)
    assert f"{tmp_path / 'in.csv'}:3: " in output.err and "2 dimensions" in output.err
    assert "`--scale 0.0`" in refused(capsys, *words, "--scale", 0)
    assert "own_lab.tables data has no use for it" in refused(capsys, *words, "--temperature", 1)
    assert "own_lab.tables data has no policy to serve" in refused(
        capsys, "--checkpoint", runs.folder / "out", "--serve", 0
    )


@pytest.mark.slow
def test_policy_refusals(policy, tmp_path, capsys):
    words = ["--checkpoint", policy / "out", "--input", policy / "episodes"]
    assert "name a file to write with --output" in refused(capsys, *words)
    output = ["--output", tmp_path / "x.h5"]
    assert "demonstrations data has no use for it" in refused(capsys, *words, *output, "--temperature", 1)
    served = ["--checkpoint", policy / "out", "--serve", 0]
    assert "`--input" in refused(capsys, *served, "--input", policy) and not list(tmp_path.iterdir())
    assert "--serve reads no files" in refused(capsys, *served, "--batch_size", 16)
    for host in ("0.0.0.0", "::", "example.org", " "):
        assert "set --token" in refused(capsys, *served, "--host", host)
    assert "`--token` is empty" in refused(capsys, *served, "--token", "")
    (tmp_path / "empty").touch()
    assert "printable" in refused(capsys, *served, "--token", f"@{tmp_path / 'empty'}")
    assert "printable" in refused(capsys, *served, "--token", "a b\n")
    assert "No such file" in refused(capsys, *served, "--token", "@/no/file")


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    """(folder, Trainer) of a tiny ACT on images."""
    folder = tmp_path_factory.mktemp("act")
    return folder, train_on_images(folder)


@pytest.mark.slow
def test_a_recording_that_fails_late_leaves_nothing(act, tmp_path, capsys):
    """A frame cannot be decoded after others of its file were predicted and written."""
    import cv2

    folder, _ = act
    content = write_act_episode(tmp_path / "in/b.hdf5", 8, cameras={"top": (40, 56)}, seed=1)
    rows = [cv2.imencode(".png", frame)[1].ravel() for frame in content[CAMERA]]
    rows = np.stack([np.pad(row, (0, 30_000 - len(row))) for row in rows])
    write_act_episode(tmp_path / "in/c.hdf5", 8, cameras={"top": (40, 56)}, seed=1, replace={CAMERA: rows})
    rows[5, 30:] = 0
    for name in ("a", "d"):
        file = tmp_path / f"in/{name}.hdf5"
        write_act_episode(file, 8, cameras={"top": (40, 56)}, seed=1, replace={CAMERA: rows})
    words = ["--checkpoint", str(folder / "out"), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out.h5")]
    predict.main([*words, "--batch_size", "3"])
    found = actions(tmp_path / "out.h5")
    assert list(found) == ["b.hdf5/actions", "c.hdf5/actions"]
    np.testing.assert_allclose(*found.values(), rtol=1e-5, atol=1e-5)
    errors = capsys.readouterr().err.splitlines()
    for line, name in zip(errors[:2], "ad", strict=True):
        assert f"{tmp_path / 'in' / name}.hdf5: {CAMERA} step 5" in line
    assert "16 inputs predicted; 2 with errors" in errors[2]


@pytest.mark.slow
def test_images_and_their_history_are_those_of_eval(act, tmp_path):
    """ACT on two frames of a camera: the plan at each step is what eval.py's policy plans there, and what the network
    predicts for the data set's sample of that step."""
    folder, trainer = act
    policy, results = evaluation.load_policy(str(folder / "out"), "cpu"), []
    for size in (1, 3):
        output = tmp_path / f"out-{size}.h5"
        words = ["--checkpoint", str(folder / "out"), "--input", str(folder / "episodes"), "--output", str(output)]
        predict.main([*words, "--batch_size", str(size)])
        results.append(actions(output))
    for index in range(2):
        found, other = (result[f"episode_{index}.hdf5/actions"] for result in results)
        np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-5)
        policy.reset()
        for step, observation in enumerate(observations(folder, index)):
            policy.model.reset()  # plan again at every step
            np.testing.assert_allclose(found[step, 0], policy(observation), rtol=1e-5, atol=1e-5)
    sample = trainer.train_dataset.__getitems__(list(range(8)))
    with torch.no_grad():
        chunk = trainer.model.eval()(state=sample["state"], images=sample["images"])["actions"].numpy()
    found = results[0][f"episode_{int(sample['episode'][0])}.hdf5/actions"]
    np.testing.assert_allclose(found, policy.processor.decode_action(chunk), rtol=1e-4, atol=1e-4)
