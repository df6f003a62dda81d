"""The normalization of a LeRobot policy as training that starts from it uses it."""

import json

import numpy as np
import pytest
import torch
from demonstration_files import run_in
from lerobot_files import write_v3
from lerobot_policy_files import write_policy
from safetensors.torch import load_file, save_file

from data.demonstrations import Config, build
from data.demonstrations.lerobot.policy import normalizers_of

KEYS = ["observation.state", "observation.environment_state"]
STATES, ACTIONS = np.random.default_rng(0).normal(size=(20, 5)), np.random.default_rng(1).normal(size=(20, 2))


def of(mean, std=None):
    """Mean and, if it is given, standard deviation."""
    return {"mean": mean} if std is None else {"mean": mean, "std": std}


def test_means_as_lerobot_applies_them(tmp_path):
    """Its environment's states have no mode of normalization, and its deviations no floor."""
    statistics = {
        "observation.state": of([1.0, 2.0, 3.0], [0.5, 1e-4, 2.0]),
        "observation.environment_state": of([9.0, 9.0], [9.0, 9.0]),
        "action": of([0.0, 1.0], [3.0, 4.0]),
    }
    write_policy(tmp_path, "act", 3, 2, 2, statistics=statistics)
    found = normalizers_of(tmp_path, KEYS, STATES, ACTIONS)
    expected = np.concatenate([(STATES[:, :3] - [1, 2, 3]) / [0.5, 1e-4, 2], STATES[:, 3:]], axis=1)
    np.testing.assert_allclose(found["state"].encode(STATES), expected, rtol=1e-5)
    np.testing.assert_allclose(found["action"].decode(ACTIONS), ACTIONS * [3, 4] + [0, 1], rtol=1e-5)
    with pytest.raises(ValueError, match=r"dataset.state_keys.*observation.state, observation.environment_state"):
        normalizers_of(tmp_path, KEYS[::-1], STATES, ACTIONS)
    with pytest.raises(ValueError, match="5 numbers in observation.state, .*, the data 4"):
        normalizers_of(tmp_path, ["a"], STATES[:, :4], ACTIONS)


def test_ranges_and_constants(tmp_path):
    low_high = {"min": [0.0, 5.0, -1.0], "max": [2.0, 5.0, 1.0]}
    statistics = {"observation.state": low_high, "action": {"min": [0.0, 0.0], "max": [4.0, 1.0]}}
    write_policy(tmp_path, "diffusion", 3, 2, statistics=statistics)
    found = normalizers_of(tmp_path, KEYS[:1], STATES[:, :3], ACTIONS)
    values = np.array([[2.0, 5.0, 0.0], [0.5, 5.0, 1.0]])
    np.testing.assert_allclose(found["state"].encode(values), [[1, -1, 0], [-0.5, -1, 1]], atol=1e-6)
    np.testing.assert_allclose(found["action"].decode(np.array([[-1.0, 0.0]])), [[0.0, 0.5]])


def test_statistics_among_the_weights_of_an_older_policy(tmp_path):
    weights = write_policy(tmp_path, "act", 3, 2)
    assert normalizers_of(tmp_path, KEYS[:1], STATES[:, :3], ACTIONS) == {}
    for name, values in (("observation_state", [3.0, 2.0, 1.0]), ("action", [5.0, 6.0])):
        for group in ("normalize_inputs", "unnormalize_outputs"):
            weights[f"{group}.buffer_{name}.mean"] = torch.tensor(values)
            weights[f"{group}.buffer_{name}.std"] = torch.ones(len(values))
    save_file(weights, tmp_path / "model.safetensors")
    found = normalizers_of(tmp_path, KEYS[:1], STATES[:, :3], ACTIONS)
    np.testing.assert_allclose(found["state"].encode(STATES[:, :3]), STATES[:, :3] - [3, 2, 1], rtol=1e-5)
    np.testing.assert_allclose(found["action"].decode(ACTIONS), ACTIONS + [5, 6], rtol=1e-5)


def test_a_run_uses_them_and_says_so(tmp_path):
    write_v3(tmp_path / "robot", cameras=())
    policy, statistics = (
        tmp_path / "policy",
        {"observation.state": of([1.0] * 5, [2.0] * 5), "action": of([0.0] * 4, [1.0] * 4)},
    )
    write_policy(policy, "act", 5, 4, statistics=statistics)
    run = run_in(tmp_path / "cache", model_name_or_path=str(policy))
    bundle = build(Config(path=str(tmp_path / "robot"), chunk_size=4), run)
    saved = bundle.files["statistics.json"]
    assert saved["state"]["mean"] == [1.0] * 5 and saved["action"]["std"] == [1.0] * 4
    assert any("as by the policy" in line for line in bundle.summary)
    with pytest.raises(ValueError, match="dataset.normalization.action: the policy in .* zscore"):
        build(Config(path=str(tmp_path / "robot"), chunk_size=4, normalization={"action": "min_max"}), run)
    (policy / "policy_preprocessor.json").unlink()
    own = build(Config(path=str(tmp_path / "robot"), chunk_size=4), run)
    assert own.files["statistics.json"]["state"]["mean"] != [1.0] * 5
    assert any("not by the policy" in line for line in own.summary)


def test_damaged_files_are_named(tmp_path):
    write_policy(
        tmp_path, "act", 3, 2, statistics={"observation.state": of([1.0] * 3, [1.0] * 3), "action": of([1.0] * 2)}
    )
    with pytest.raises(ValueError, match="std of action|usable std"):
        normalizers_of(tmp_path, KEYS[:1], STATES[:, :3], ACTIONS)
    (tmp_path / "normalizer.safetensors").write_bytes(b"\x05")
    with pytest.raises(ValueError, match="normalizer.safetensors cannot be read"):
        normalizers_of(tmp_path, KEYS[:1], STATES[:, :3], ACTIONS)
    step = {"steps": [{"registry_name": "normalizer_processor", "state_file": "../x.safetensors"}]}
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps(step))
    with pytest.raises(ValueError, match="must lie beside it"):
        normalizers_of(tmp_path, KEYS[:1], STATES[:, :3], ACTIONS)
    assert load_file(tmp_path / "model.safetensors")
