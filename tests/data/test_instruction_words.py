"""Instructions as sets of words, from episode files to the policy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from demonstration_files import write_act_episode

from data.demonstrations import build, check
from data.demonstrations.config import Config
from data.demonstrations.encoder import ObservationEncoder, encode_words, vocabulary_of
from loader.schema.process_arguments import ProcessArguments

TEXTS = ["Lift the cube!", "push the red cube", "lift the cube, slowly"]


def bundle(folder, cache, **keys):
    config = Config(path=str(folder), cameras=[], chunk_size=4, **keys)
    return config, build(config, SimpleNamespace(process=ProcessArguments(), cache_dir=cache))


@pytest.fixture
def episodes(tmp_path):
    for index, text in enumerate(TEXTS):
        write_act_episode(
            tmp_path / "episodes" / f"episode_{index}.hdf5", steps=6, seed=index, attributes={"instruction": text}
        )
    return tmp_path / "episodes"


def test_vocabulary_and_words_by_hand():
    vocabulary = vocabulary_of(TEXTS)
    assert vocabulary == ["cube", "lift", "push", "red", "slowly", "the"]
    assert encode_words("Push, PUSH the blue cube.", vocabulary).tolist() == [1, 0, 1, 0, 0, 1]
    assert encode_words("", vocabulary).tolist() == [0] * 6


@pytest.mark.keys("dataset(demonstrations).instruction_words")
def test_words_of_a_batch_are_those_of_an_observation(episodes, tmp_path):
    config, data = bundle(episodes, tmp_path / "cache", instruction_words=True)
    assert data.dims["num_words"] == 6
    batch = data.train_dataset.__getitems__([0, 6, 17])
    expected = [[1, 1, 0, 0, 0, 1], [1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1]]
    assert batch["words"].tolist() == expected and batch["words"].dtype == torch.float32
    encoder = ObservationEncoder.from_files(config, ProcessArguments(), data.files["statistics.json"])
    observation = {key: np.zeros(14) for key in encoder.state_keys}
    live = encoder.encode({**observation, "instruction": "lift the cube, slowly"})
    assert live["words"].tolist() == expected[2:]
    for text in (b"lift the cube, slowly", np.array(b"lift the cube, slowly"), np.array(["lift the cube, slowly"])):
        assert torch.equal(encoder.encode({**observation, "instruction": text})["words"], live["words"])
    for wrong in (b"\xff", 3, None, ["lift", "push"]):
        with pytest.raises(ValueError, match="instruction .* one text"):
            encoder.encode({**observation, "instruction": wrong})
    with pytest.raises(ValueError, match="`instruction`"):
        encoder.encode(observation)
    _, plain = bundle(episodes, tmp_path / "cache")
    assert plain.dims["num_words"] == 0 and "words" not in plain.train_dataset.__getitems__([0])


def test_episodes_without_instructions_are_refused(tmp_path):
    write_act_episode(tmp_path / "episodes" / "episode_0.hdf5", steps=6, seed=0)
    with pytest.raises(ValueError, match="instruction_words"):
        bundle(tmp_path / "episodes", tmp_path / "cache", instruction_words=True)


@pytest.mark.parametrize(
    ("kind", "clips", "refused"), [("zscore", True, True), ("min_max", True, False), ("zscore", False, False)]
)
def test_a_model_that_clips_needs_actions_within_its_range(episodes, kind, clips, refused):
    config = Config(path=str(episodes), cameras=[], normalization={"action": kind})
    model = SimpleNamespace(config=SimpleNamespace(clip_sample=clips))
    problems = check(config, SimpleNamespace(process=ProcessArguments(), model=model))
    assert [line.split(":")[0] for line in problems] == ["dataset.normalization.action"] * refused
