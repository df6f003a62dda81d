"""Runs of a small vision-language-action policy that reads instructions and writes its reasoning before it acts."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml
from demonstration_files import write_act_episode
from run_results import metrics
from vla_policies import FAMILIES

import eval as evaluation
import predict
import prepare
import train
from data.demonstrations.language import PromptTokenizer
from data.load_tokenizer import load_tokenizer
from data.text.tokenizers import train_bpe
from loader.command_line.entry import command_line
from loader.resolve.resolver import read_saved
from models.vla.backbone import Backbone

INSTRUCTIONS = ["push the red cube", "lift the blue one"]
SUBTASKS = ["reach"] * 8 + ["grasp"] * 8
STEPS = len(SUBTASKS)


def write_data(folder):
    """Episodes of two instructions: the sign of the action is that of the instruction, its size that of the subtask."""
    ramp = np.linspace(0.2, 1, STEPS)[:, None] * [1.0, 0.5]
    for number in range(6):
        sign = 1 if number % 2 == 0 else -1
        write_act_episode(
            folder / f"episodes/episode_{number}.hdf5",
            STEPS,
            (3, 2),
            seed=number,
            attributes={"instruction": INSTRUCTIONS[number % 2]},
            replace={
                "reasoning/subtask": np.array(SUBTASKS, object),
                "substep_reasonings": np.array([f"<seg>now {text}</seg>" for text in SUBTASKS], object),
                "observations/qpos": ramp[:, [0, 0, 1]] + np.random.default_rng(number).normal(size=(STEPS, 3)) * 0.01,
                "observations/env_state": None,
                "observations/qvel": None,
                "action": sign * ramp,
            },
        )
    train_bpe([*INSTRUCTIONS, *SUBTASKS], 300).save_pretrained(folder / "tokenizer")


def configure(folder, process=None, **model):
    """Write task and training file; returns the words of train.py."""
    dataset = {
        "name": "demonstrations",
        "path": str(folder / "episodes"),
        "cameras": [],
        "chunk_size": 4,
        "eval_fraction": 0.34,
        "tokenizer": str(folder / "tokenizer"),
        "normalization": {"state": "min_max", "action": "min_max"},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump({"dataset": dataset}))
    training = {
        "task_name": str(folder / "task.yaml"),
        "model": {"name": "vla", "config": {"model_type": "smolvlm", **FAMILIES["smolvlm"]}, **model},
        "cache_dir": str(folder / "cache"),
        "report_to": "none",
        "max_steps": 60,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 16,
        "save_strategy": "no",
        "logging_steps": 10,
        "eval_steps": 60,
        **(process or {}),
    }
    (folder / "training.yaml").write_text(yaml.safe_dump(training))
    return ["--training_config", str(folder / "training.yaml"), "--output_dir", str(folder / "out")]


REASONING = {"use_reasoning": True, "select_seg_token_mask": True, "llm_loss_weight": 0.5}


@pytest.mark.slow
@pytest.mark.keys("use_reasoning", "select_seg_token_mask", "llm_loss_weight", "use_prev_subtask")
@pytest.mark.keys("model(vla).vocab_size", "model(vla).eos_token_id", "model(vla).target_tokens")
def test_reasoning_from_files_to_the_policy(in_root, tmp_path):
    """A language loss, its accuracy on held-out episodes, and the text in predictions and at the server."""
    write_data(tmp_path)
    words = configure(tmp_path, {**REASONING, "use_prev_subtask": True}, attention="joint")
    train.main(words)
    names = ("eval_loss", "eval_loss_action", "eval_loss_language", "eval_language_accuracy")
    loss, action, language, accuracy = (metrics(tmp_path / "out", name)[60] for name in names)
    assert accuracy > 0.9 and language < 0.5
    assert loss == pytest.approx(action + 0.5 * language, rel=1e-3)

    config, tokenizer = json.loads((tmp_path / "out/config.json").read_text()), load_tokenizer(tmp_path / "out")
    expected = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    expected["target_tokens"] = len(tokenizer("now grasp")["input_ids"]) + 1
    assert {name: config[name] for name in expected} == expected

    scores = evaluation.main(["--checkpoint", str(tmp_path / "out"), "--json", str(tmp_path / "scores.json")])
    assert scores["language_accuracy"] == pytest.approx(accuracy, abs=1e-3)
    assert scores["loss"] == pytest.approx(loss, rel=1e-3)

    inputs = ["--input", str(tmp_path / "episodes/episode_0.hdf5"), "--output", str(tmp_path / "out.h5")]
    predict.main(["--checkpoint", str(tmp_path / "out"), *inputs, "--batch_size", "5"])
    with h5py.File(tmp_path / "out.h5") as root, h5py.File(tmp_path / "episodes/episode_0.hdf5") as recorded:
        group = root["episode_0.hdf5"]
        texts, chunks = group["reasoning"].asstr()[:], group["actions"][:]
        assert chunks.shape == (STEPS, 4, 2)
        assert np.mean([text == f"now {subtask}" for text, subtask in zip(texts, SUBTASKS, strict=True)]) > 0.8
        states = recorded["observations/qpos"][:]
    observations = [
        {"observations/qpos": state, "instruction": INSTRUCTIONS[0], "subtask": subtask}
        for state, subtask in zip(states, SUBTASKS, strict=True)
    ]
    folder, run = evaluation.checkpoint_run(str(tmp_path / "out"))
    session_policy = run.dataset.module.Processor.from_pretrained(folder, run.dataset.config, run.process)
    session = session_policy.session(evaluation.load_model(folder, run, "cpu"))
    assert session_policy.metadata(session.model)["texts"] == ["instruction", "subtask"]
    answers = [session.act(observation) for observation in observations]
    np.testing.assert_allclose(np.stack([answer["actions"] for answer in answers]), chunks, atol=1e-4)
    assert [answer["reasoning"] for answer in answers] == list(texts)
    with pytest.raises(ValueError, match="`instruction`"):
        session.act({"observations/qpos": np.zeros(3)})


@pytest.mark.slow
def test_a_policy_reads_the_subtasks_that_it_wrote(in_root, tmp_path, monkeypatch):
    """From recordings, at the server and in rollouts; each recording and each episode begins without any."""
    write_data(tmp_path)
    for file in sorted((tmp_path / "episodes").glob("*.hdf5")):
        with h5py.File(file, "a") as root:
            del root["substep_reasonings"]
    process = {"use_reasoning": True, "use_prev_subtask": True, "max_steps": 1}
    train.main(configure(tmp_path, process, n_action_steps=2, sampling_steps=1))
    tokenizer, written, seen = load_tokenizer(tmp_path / "out"), [], []
    script = ["reach", "reach", "grasp", "reach"] + ["grasp"] * (STEPS - 4)
    previous = [None, None, None, "reach", "grasp"] + ["reach"] * (STEPS - 5)

    def write(backbone, context, most, eos):
        written.append(script[len(written) % STEPS])
        ids = torch.tensor([[*tokenizer(written[-1])["input_ids"], eos]])
        return ids, backbone.append(context, backbone.embed(ids), torch.ones_like(ids, dtype=torch.bool))

    def live(prompts, instruction, state):
        seen.append(instruction)
        return original(prompts, instruction, state)

    original = PromptTokenizer.live
    monkeypatch.setattr(Backbone, "write", write)
    monkeypatch.setattr(PromptTokenizer, "live", live)

    def prompts(of):
        seen[:], took = [], list(seen)
        return took == [INSTRUCTIONS[0] + (f" Previous subtask: {text}" if text else "") for text in of]

    (tmp_path / "new").mkdir()
    for number in (0, 2):
        with h5py.File(tmp_path / f"episodes/episode_{number}.hdf5", "a") as root:
            del root["reasoning"]
        shutil.copy(tmp_path / f"episodes/episode_{number}.hdf5", tmp_path / "new")
    inputs = ["--input", str(tmp_path / "new"), "--output", str(tmp_path / "out.h5")]
    predict.main(["--checkpoint", str(tmp_path / "out"), *inputs])
    assert prompts(2 * previous)
    with h5py.File(tmp_path / "out.h5") as root:
        assert root["episode_2.hdf5/reasoning"].asstr()[:].tolist() == script

    observation = {"observations/qpos": np.zeros(3), "instruction": INSTRUCTIONS[0]}
    folder, run = evaluation.checkpoint_run(str(tmp_path / "out"))
    processor = run.dataset.module.Processor.from_pretrained(folder, run.dataset.config, run.process)
    session = processor.session(evaluation.load_model(folder, run, "cpu"))
    assert processor.metadata(session.model)["texts"] == ["instruction"]
    for _ in range(2):
        session.reset()
        assert [session.act(observation)["reasoning"] for _ in range(STEPS)] == script
    assert prompts(2 * previous)

    policy = evaluation.load_policy(tmp_path / "out", "cpu")
    for _ in range(2):
        policy.reset()
        for _ in range(2 * STEPS):
            policy(observation)
    # It writes at every second step, and the prompt of the next step, which is not read, knows it already.
    both = [text for pair in zip(previous, [*previous[1:], "reach"], strict=True) for text in pair]
    assert prompts(2 * both) and len(written) == 6 * STEPS


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["bins", "fast"])
def test_actions_as_tokens_from_files_to_the_policy(in_root, tmp_path, tokens, capsys):
    """`prepare.py --action_tokenizer` to a policy whose actions follow the instruction."""
    write_data(tmp_path)
    words = configure(tmp_path)
    if tokens == "fast":
        file = tmp_path / "fast.json"
        task = ["--task_name", str(tmp_path / "task.yaml"), "--out", str(file)]
        prepare.main(["--action_tokenizer", "fast:200:20", *task])
        assert "4 x 2" in capsys.readouterr().out and json.loads(file.read_text())["scale"] == 20
        assert json.loads(file.read_text())["normalization"] == {"kind": "min_max", "mask": [True, True]}
        tokens = str(file)
    words = configure(tmp_path, {"max_steps": 120}, head="tokens", action_tokenizer=tokens, prefix_attention="causal")
    train.main(words)
    assert read_saved(tmp_path / "out/run.yaml").model.config.action_tokenizer == tokens
    (tmp_path / "fast.json").unlink(missing_ok=True)
    policy = evaluation.load_policy(tmp_path / "out", "cpu")
    signs = []
    for text in INSTRUCTIONS:
        policy.reset()
        signs.append(np.sign(policy({"observations/qpos": np.full(3, 0.8), "instruction": text})).tolist())
    assert signs == [[1, 1], [-1, -1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--action_tokenizer", "bpe:9"], "--action_tokenizer bpe:9"),
        (["--action_tokenizer", "fast:2"], "2 tokens are fewer"),
        (["--action_tokenizer", "fast:200", "--num_episodes", "3"], "--num_episodes"),
        (["--action_tokenizer", "fast:200", "--convert", "x"], "--action_tokenizer"),
        (["--action_tokenizer", "fast:200", "--fps", "3"], "--fps"),
    ],
)
def test_bad_flags_of_action_tokens(in_root, tmp_path, flags, named, capsys):
    write_data(tmp_path)
    configure(tmp_path)
    with pytest.raises(SystemExit) as left:
        task = ["--task_name", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "fast.json")]
        command_line(prepare.main, [*flags, *(task if "--convert" not in flags else task[2:])])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and named in errors[0], errors
    assert not (tmp_path / "fast.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    ["normalization={state: min_max, action: zscore}", "normalization_mask={action: [true, false]}"],
)
def test_action_tokens_of_another_normalization_are_refused(in_root, tmp_path, change, capsys):
    write_data(tmp_path)
    words = configure(tmp_path, head="tokens", action_tokenizer=str(tmp_path / "fast.json"))
    task = ["--task_name", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "fast.json")]
    prepare.main(["--action_tokenizer", "fast:200", *task])
    with pytest.raises(SystemExit) as left:
        command_line(train.main, [*words, "--set", f"dataset.{change}"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and "model.action_tokenizer" in errors[0], errors
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "dataset", "named"),
    [
        ({"select_seg_token_mask": True}, {}, "select_seg_token_mask"),
        ({}, {"prompt": "do it"}, "dataset.prompt"),
        ({}, {"tokenizer": None}, "dataset.tokenizer"),
        ({"use_reasoning": True}, {"path": "without"}, "use_reasoning"),
    ],
)
def test_bad_input_is_one_line(in_root, tmp_path, process, dataset, named, capsys):
    write_data(tmp_path)
    write_act_episode(tmp_path / "without/episode_0.hdf5", 8, (3, 2), attributes={"instruction": "x"})
    write_act_episode(tmp_path / "without/episode_1.hdf5", 8, (3, 2), attributes={"instruction": "x"})
    words = configure(tmp_path, process)
    task = yaml.safe_load((tmp_path / "task.yaml").read_text())
    if "path" in dataset:
        dataset = {"path": str(tmp_path / "without")}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"dataset": task["dataset"] | dataset}))
    with pytest.raises(SystemExit) as left:
        command_line(train.main, words)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and named in errors[0], errors
    assert not (tmp_path / "out").exists()
