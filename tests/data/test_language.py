"""Instructions and reasoning as tokens: the same from HDF5 and LeRobot, in training and at work."""

import contextlib
import json
import pickle
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from demonstration_files import assert_same, everything, process_parameters, write_act_episode
from tokenizers.processors import TemplateProcessing

from data.bundle import collate
from data.demonstrations import Config, Processor, build, check
from data.demonstrations.language import marked, padded, previous_subtasks, state_text, subtask_in
from data.text.tokenizers import train_bpe
from metrics.language import LanguageAccuracy

INSTRUCTIONS = ["push the red cube", "lift it"]
SUBTASKS = ["reach"] * 4 + ["grasp it"] * 3 + ["reach"] * 2 + ["lift"] * 3
LENGTH = len(SUBTASKS)


def tokenizer_in(folder, side="right", pad=None):
    """A byte-level tokenizer of which `pad` is a token of its own, or None; saved in the folder."""
    tokenizer = train_bpe([*INSTRUCTIONS, *SUBTASKS], 300)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)
    return tokenizer


def run_of(tmp_path, trained_in=None, **process):
    """A run whose model has a vocabulary."""
    model = SimpleNamespace(name="vla", config=SimpleNamespace(vocab_size=None))
    folders = {"cache_dir": tmp_path / "cache", "trained_in": trained_in}
    return SimpleNamespace(process=process_parameters(**process), seed=0, model=model, **folders)


def config_of(tmp_path, **keys):
    given = {"path": str(tmp_path / "act"), "cameras": [], "chunk_size": 4, "tokenizer": str(tmp_path / "tokenizer")}
    return Config(**given | keys)


def built(tmp_path, process=None, **keys):
    return build(config_of(tmp_path, **keys), run_of(tmp_path, **process or {}))


def write_episodes(tmp_path, reasoning=None, instructions=INSTRUCTIONS, **replace):
    """Episodes with an instruction each, and perhaps subtasks and reasoning; returns their arrays."""
    texts = {"reasoning/subtask": np.array(SUBTASKS, object)}
    if reasoning is not None:
        texts["substep_reasonings"] = np.array(reasoning, object)
    return [
        write_act_episode(
            tmp_path / f"act/episode_{number}.hdf5",
            LENGTH,
            (3, 2),
            seed=number,
            attributes={"instruction": text, "fps": 10},
            replace=texts | {"observations/env_state": None, "observations/qvel": None} | replace,
        )
        for number, text in enumerate(instructions)
    ]


@pytest.fixture
def tokenizer(tmp_path):
    return tokenizer_in(tmp_path / "tokenizer")


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).tokenizer", "dataset(demonstrations).prompt")
def test_prompts_are_the_tokens_of_the_template(tmp_path, tokenizer):
    write_episodes(tmp_path)
    for prompt in ("{instruction}\n", "User: {instruction}. Robot:"):
        bundle = built(tmp_path, prompt=prompt)
        batch = everything(bundle.train_dataset)
        expected = [tokenizer(prompt.replace("{instruction}", text))["input_ids"] for text in INSTRUCTIONS]
        width = max(map(len, expected))
        assert batch["prompt_ids"].shape == batch["prompt_mask"].shape == (2 * LENGTH, width)
        assert batch["prompt_ids"].dtype == torch.int64 and batch["prompt_mask"].dtype == torch.bool
        for episode, row in enumerate(expected):
            ids, mask = batch["prompt_ids"][episode * LENGTH + 5], batch["prompt_mask"][episode * LENGTH + 5]
            assert ids[mask].tolist() == row and mask.tolist() == [True] * len(row) + [False] * (width - len(row))
        assert "target_ids" not in batch and not bundle.metrics
        dims = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "target_tokens": 0}
        assert {name: bundle.dims[name] for name in dims} == dims
        dataset = bundle.train_dataset
        assert_same(collate([dataset[index] for index in (0, 15)]), dataset.__getitems__([0, 15]))


def test_the_token_that_begins_a_text_is_there_once(tmp_path, tokenizer):
    """PaliGemma's tokenizer puts it before a text, and so may the template."""
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    begin = ("<bos>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[begin])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_episodes(tmp_path)
    for prompt in ("<bos>{instruction}\n", "{instruction}\n"):
        ids = everything(built(tmp_path, prompt=prompt).train_dataset)["prompt_ids"][0].tolist()
        plain = tokenizer(f"{INSTRUCTIONS[0]}\n", add_special_tokens=False)["input_ids"]
        assert ids[: 1 + len(plain)] == [tokenizer.bos_token_id, *plain], prompt


@pytest.mark.parametrize(("side", "pad"), [("left", None), ("left", "<pad>"), ("right", "<pad>")])
def test_padding_is_on_the_tokenizers_side(tmp_path, side, pad):
    tokenizer = tokenizer_in(tmp_path / "tokenizer", side, pad)
    write_episodes(tmp_path)
    batch = everything(built(tmp_path, {"use_reasoning": True}).train_dataset)
    theirs = tokenizer([f"{text}\n" for text in INSTRUCTIONS], padding=True, return_tensors="pt") if pad else None
    for episode, text in enumerate(INSTRUCTIONS):
        ids, mask = batch["prompt_ids"][episode * LENGTH], batch["prompt_mask"][episode * LENGTH]
        count = len(tokenizer(f"{text}\n")["input_ids"])
        assert mask[-count:].all() if side == "left" else mask[:count].all()
        assert mask.sum() == count and tokenizer.decode(ids[mask]) == f"{text}\n"
        if pad:
            assert torch.equal(ids, theirs["input_ids"][episode])
            assert torch.equal(mask, theirs["attention_mask"][episode].bool())
    # The token that ends a target is one of its tokens even where the same token pads.
    for ids, mask in zip(batch["target_ids"], batch["target_mask"], strict=True):
        count = int(mask.sum())
        assert mask[:count].all() and ids[count - 1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in ids[: count - 1].tolist()


@pytest.mark.keys("use_reasoning")
def test_targets_are_the_reasoning_and_its_end(tmp_path, tokenizer):
    write_episodes(tmp_path)
    bundle = built(tmp_path, {"use_reasoning": True}, eval_fraction=0.5)
    batch = everything(bundle.train_dataset)
    for step, text in enumerate(SUBTASKS):
        expected = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert batch["target_ids"][step][batch["target_mask"][step]].tolist() == expected
    assert torch.equal(batch["target_loss_mask"], batch["target_mask"])
    assert bundle.dims["target_tokens"] == batch["target_ids"].shape[1] == len(tokenizer("grasp it")["input_ids"]) + 1
    assert bundle.directions() == {"language_accuracy": "max"}


@pytest.mark.slow
def test_reasoning_of_il_studio(tmp_path, tokenizer):
    """`substep_reasonings` comes first, then the parts under `reasoning`, then a dataset of that name."""
    lines = [f"step {step}" for step in range(LENGTH)]
    write_episodes(tmp_path, reasoning=lines)
    assert everything(built(tmp_path, {"use_reasoning": True}).train_dataset)["reasoning"][:LENGTH] == lines
    parts = {"reasoning/direction": np.array(["left"] * LENGTH, object)}
    parts["reasoning/gripper_position"] = np.arange(2 * LENGTH).reshape(LENGTH, 2)
    write_episodes(tmp_path, **parts)
    texts = everything(built(tmp_path, {"use_reasoning": True}).train_dataset)["reasoning"]
    assert texts[5] == "subtask: grasp it\ngripper_position: 10, 11\ndirection: left"
    plain = {"reasoning/subtask": None, "reasoning": np.array(lines, object)}
    write_episodes(tmp_path, **plain)
    assert everything(built(tmp_path, {"use_reasoning": True}).train_dataset)["reasoning"][:LENGTH] == lines


@pytest.mark.keys("use_prev_subtask")
def test_the_previous_subtask_is_in_the_prompt(tmp_path, tokenizer):
    write_episodes(tmp_path)
    batch = everything(built(tmp_path, {"use_prev_subtask": True}).train_dataset)
    previous = [None] * 4 + ["reach"] * 3 + ["grasp it"] * 2 + ["reach"] * 3
    for step, subtask in enumerate(previous):
        text = INSTRUCTIONS[0] + (f" Previous subtask: {subtask}" if subtask else "")
        ids = batch["prompt_ids"][step][batch["prompt_mask"][step]]
        assert ids.tolist() == tokenizer(f"{text}\n")["input_ids"]


def test_previous_subtasks_by_hand():
    codes = np.array([0, 1, 1, 0, 2, 1, 3, 3, 2], np.int32)
    assert previous_subtasks(codes, np.array([0, 6, 9])).tolist() == [0, 0, 0, 1, 1, 2, 0, 0, 3]


@pytest.mark.keys("select_seg_token_mask")
def test_marked_tokens_carry_the_loss(tmp_path, tokenizer):
    """Every token that shares a character with a marked part does, and the one that ends the text."""
    plain = "the gripper is open, so grasp the red cube now"
    text = plain.replace("open", "<seg>open</seg>").replace("red cube", "<seg>red cube</seg>")
    write_episodes(tmp_path, reasoning=[text] * LENGTH)
    batch = everything(built(tmp_path, {"use_reasoning": True, "select_seg_token_mask": True}).train_dataset)
    ids, mask, loss = (batch[name][3] for name in ("target_ids", "target_mask", "target_loss_mask"))
    assert tokenizer.decode(ids[mask][:-1]) == plain
    characters = np.zeros(len(plain), bool)
    for word in ("open", "red cube"):
        characters[plain.index(word) : plain.index(word) + len(word)] = True
    expected, place = [], 0
    for token in ids[mask][:-1].tolist():
        size = len(tokenizer.decode([token]))
        expected.append(bool(characters[place : place + size].any()))
        place += size
    assert loss[mask].tolist() == [*expected, True] and 0 < sum(expected) < len(expected)
    assert not loss[~mask].any()
    without = everything(built(tmp_path, {"use_reasoning": True}).train_dataset)
    assert torch.equal(without["target_loss_mask"], without["target_mask"])
    assert torch.equal(without["target_ids"], batch["target_ids"])


def test_marks_by_hand():
    assert marked("a <seg>bc</seg>d<seg>e</seg>") == ("a bcde", [(2, 4), (5, 6)])
    assert marked("plain") == ("plain", [])
    with pytest.raises(ValueError, match="<seg>"):
        marked("a <seg>b")


@pytest.mark.keys("dataset(demonstrations).max_prompt_tokens", "dataset(demonstrations).max_target_tokens")
def test_longer_texts_are_cut_and_counted(tmp_path, tokenizer):
    write_episodes(tmp_path)
    whole = built(tmp_path, {"use_reasoning": True})
    assert not any(" cut to " in line for line in whole.summary)
    full = everything(whole.train_dataset)
    bundle = built(tmp_path, {"use_reasoning": True}, max_prompt_tokens=3, max_target_tokens=2)
    batch = everything(bundle.train_dataset)
    lengths = [len(tokenizer(f"{text}\n")["input_ids"]) for text in INSTRUCTIONS]
    assert any(f"{sum(length > 3 for length in lengths)} of 2 prompts" in line for line in bundle.summary)
    longer = sum(len(tokenizer(text)["input_ids"]) + 1 > 2 for text in set(SUBTASKS))
    assert longer and any(f"{longer} of 3 targets" in line for line in bundle.summary)
    assert torch.equal(batch["prompt_ids"], full["prompt_ids"][:, :3])
    ends = batch["target_ids"].gather(1, batch["target_mask"].sum(1, keepdim=True) - 1)
    assert batch["target_ids"].shape[1] == 2 and (ends == tokenizer.eos_token_id).all()
    assert bundle.dims["target_tokens"] == 2


def test_the_state_as_text(tmp_path, tokenizer):
    assert state_text(np.float32([-1, -2, 0, 0.999, 1, 3, -0.9999])) == "0 0 128 255 255 255 0"
    assert state_text(np.linspace(-1, 1, 257)[:-1] + 1e-6) == " ".join(map(str, range(256)))
    write_episodes(tmp_path)
    normalization = {"state": "min_max", "action": "min_max"}
    prompt = "Task: {instruction}, State: {state};\n"
    bundle = built(tmp_path, prompt=prompt, normalization=normalization, max_prompt_tokens=100)
    batch = everything(bundle.train_dataset)
    for index in (0, 7, 20):
        bins = np.digitize(batch["state"][index].numpy(), np.linspace(-1, 1, 257)[:-1]) - 1
        text = f"Task: {INSTRUCTIONS[index // LENGTH]}, State: {' '.join(map(str, bins))};\n"
        ids = batch["prompt_ids"][index][batch["prompt_mask"][index]]
        assert ids.tolist() == tokenizer(text)["input_ids"]
    assert batch["prompt_mask"].any(0).all(), "as wide as the longest"
    keys = {"prompt": prompt, "normalization": normalization, "max_prompt_tokens": 200, "n_obs_steps": 3}
    bundle = built(tmp_path, **keys)
    assert everything(bundle.train_dataset)["prompt_mask"].sum(1).max() == bundle.processor.prompts.prompt_tokens


@pytest.mark.slow
@pytest.mark.keys("dataset(demonstrations).phrasings")
def test_phrasings_vary_in_training_alone(tmp_path, tokenizer):
    write_episodes(tmp_path, instructions=[INSTRUCTIONS[0]] * 4)
    wordings = {INSTRUCTIONS[0]: ["shove the red cube", "give the red cube a push, please"]}
    bundle = built(tmp_path, phrasings=wordings, eval_fraction=0.25)
    texts = everything(bundle.train_dataset)["instruction"]
    counts = [texts.count(text) for text in (INSTRUCTIONS[0], *wordings[INSTRUCTIONS[0]])]
    assert sum(counts) == 3 * LENGTH and min(counts) > LENGTH / 2
    assert everything(bundle.train_dataset)["instruction"] == texts
    assert set(everything(bundle.eval_datasets["validation"])["instruction"]) == {INSTRUCTIONS[0]}
    widest = max(len(tokenizer(f"{text}\n")["input_ids"]) for text in wordings[INSTRUCTIONS[0]])
    assert bundle.train_dataset[0]["prompt_ids"].shape == bundle.eval_datasets["validation"][0]["prompt_ids"].shape
    assert bundle.train_dataset[0]["prompt_ids"].shape == (widest,)
    with pytest.raises(ValueError, match=r"dataset.phrasings: .*`push the red cub`.*`push the red cube`"):
        built(tmp_path, phrasings={"push the red cub": ["x"]})


PROCESSES = [{"use_reasoning": True}, {"use_prev_subtask": True}]


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_hdf5_and_lerobot_give_the_same_batch(tmp_path, tokenizer, process):
    pytest.importorskip("pyarrow")
    from data.demonstrations.lerobot.convert import Encoding, Settings, convert

    lines = [f"<seg>{text}</seg> at {step}" for step, text in enumerate(SUBTASKS)]
    write_episodes(tmp_path, reasoning=lines)
    convert(tmp_path / "act", tmp_path / "robot", Settings(None, "unused", Encoding("libx264", 20)))
    convert(tmp_path / "robot", tmp_path / "back", Settings(None, "unused", Encoding("libx264", 20)))
    process = process | ({"select_seg_token_mask": True} if "use_reasoning" in process else {})
    batches = [
        everything(built(tmp_path, process, path=str(tmp_path / name)).train_dataset)
        for name in ("act", "robot", "back")
    ]
    for other in batches[1:]:
        texts = [name for name in batches[0] if name.startswith(("prompt", "target", "instr", "reason"))]
        assert len(texts) == (7 if "use_reasoning" in process else 3)
        assert_same({name: batches[0][name] for name in texts}, {name: other[name] for name in texts})


def observation(arrays, step, **texts):
    return {"observations/qpos": arrays["observations/qpos"][step], **texts}


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prompt", ["{instruction}\n", "{state}: {instruction}"])
def test_a_policy_at_work_reads_what_it_was_trained_on(tmp_path, side, prompt):
    """From the files beside the model alone, bit for bit; a longer instruction makes a longer prompt."""
    tokenizer = tokenizer_in(tmp_path / "tokenizer", side)
    written = write_episodes(tmp_path)
    keys = {"prompt": prompt, "normalization": {"state": "min_max"}}
    bundle = built(tmp_path, {"use_prev_subtask": True}, **keys)
    saved = tmp_path / "model"
    saved.mkdir()
    bundle.processor.save_pretrained(saved)
    (saved / "statistics.json").write_text(json.dumps(bundle.files["statistics.json"]))
    process = process_parameters(use_prev_subtask=True)
    processor = Processor.from_pretrained(saved, config_of(tmp_path, **keys, tokenizer=None), process)
    for episode, arrays in enumerate(written):
        processor.reset()
        for step in range(LENGTH):
            texts = {"instruction": INSTRUCTIONS[episode], "subtask": SUBTASKS[step]}
            inputs = processor.encode(observation(arrays, step, **texts))
            sample = bundle.train_dataset[episode * LENGTH + step]
            assert inputs.keys() == {"state", "prompt_ids", "prompt_mask"}
            for name, value in inputs.items():
                assert torch.equal(value[0], sample[name]), name
    processor.reset()
    long = "do nothing of the kind, and then wait for a very long time; " * 2
    several = [
        processor.encode(observation(arrays, 0, instruction=text, subtask="")) for text in (long, INSTRUCTIONS[1])
    ]
    joined = processor.prompts.joined(several)
    for row, each in enumerate(several):
        ids = joined["prompt_ids"][row][joined["prompt_mask"][row]]
        assert ids.tolist() == each["prompt_ids"][0][each["prompt_mask"][0]].tolist()
    assert len({each["prompt_ids"].shape for each in several}) == 2
    with pytest.warns(UserWarning, match="max_prompt_tokens"):
        cut = processor.encode(observation(arrays, 0, instruction=long * 9, subtask=""))
    assert cut["prompt_ids"].shape == (1, 64)
    with pytest.raises(ValueError, match="`instruction`, `subtask`"):
        processor.encode(observation(arrays, 0))
    assert processor.prompts.decode(torch.tensor([[*tokenizer("lift")["input_ids"], tokenizer.eos_token_id]])) == [
        "lift"
    ]


def test_a_recording_is_read_with_its_texts(tmp_path, tokenizer):
    written = write_episodes(tmp_path)
    bundle = built(tmp_path, {"use_prev_subtask": True})
    file = tmp_path / "act/episode_1.hdf5"
    source = SimpleNamespace(path=file, local_file=lambda: contextlib.nullcontext(file))
    items = list(bundle.processor.read(source))
    assert [item.raw["subtask"] for item in items] == SUBTASKS and items[0].raw["instruction"] == INSTRUCTIONS[1]
    np.testing.assert_array_equal(items[3].raw["observations/qpos"], written[1]["observations/qpos"][3])


@pytest.mark.slow
def test_a_scored_model_keeps_its_tokenizer(tmp_path, tokenizer):
    write_episodes(tmp_path)
    bundle = built(tmp_path, {"use_reasoning": True})
    saved = tmp_path / "model"
    saved.mkdir()
    bundle.processor.save_pretrained(saved)
    (saved / "statistics.json").write_text(json.dumps(bundle.files["statistics.json"]))
    write_episodes(tmp_path, instructions=["quite another instruction, longer than those of the training", "lift it"])
    shutil.rmtree(tmp_path / "tokenizer")
    run = run_of(tmp_path, saved, use_reasoning=True)
    other = build(config_of(tmp_path), run)
    assert other.dims == bundle.dims
    ids, mask = (everything(other.train_dataset)[name][0] for name in ("prompt_ids", "prompt_mask"))
    assert tokenizer.decode(ids[mask]).startswith("quite another instruction, longer")
    whole = json.loads((saved / "statistics.json").read_text())
    for damaged in ({}, [], {**whole["observation"]["language"], "more": 1}):
        content = {**whole, "observation": {**whole["observation"], "language": damaged}}
        (saved / "statistics.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="`language` in statistics.json is damaged"):
            Processor.from_pretrained(saved, config_of(tmp_path), run.process)


def test_language_accuracy_counts_tokens_that_carry_loss():
    metric = LanguageAccuracy()
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    loss = torch.tensor([[True, True, False], [True, False, False]])
    metric.update({"target_ids": ids, "target_loss_mask": loss}, {"target_predictions": ids.clone()})
    wrong = torch.tensor([[1, 9, 9], [9, 9, 9]])
    metric.update({"target_ids": ids, "target_loss_mask": loss}, {"target_predictions": wrong})
    assert metric.compute() == {"language_accuracy": pytest.approx(4 / 6)} and metric.directions["language_accuracy"]
    metric.reset()
    metric.update({"target_ids": ids[:1], "target_loss_mask": loss[:1]}, {"target_predictions": wrong[:1]})
    assert metric.compute() == {"language_accuracy": 0.5}


def test_any_text_that_a_policy_writes_is_stored(tmp_path):
    writer = Processor.writer(None, tmp_path / "out.h5")
    for text in ("a\0b", "ü\n"):
        writer.write(SimpleNamespace(name="x"), {"actions": np.zeros((2, 3)), "reasoning": text})
    writer.close()
    with h5py.File(tmp_path / "out.h5") as root:
        assert [text.decode() for text in root["x/reasoning"]] == ["a\ufffdb", "ü\n"]


def test_padded_by_hand():
    ids, mask = padded([[1, 2], [3]], 3, 7, left=True)
    assert ids.tolist() == [[7, 1, 2], [7, 7, 3]] and mask.tolist() == [[False, True, True], [False, False, True]]


@pytest.mark.slow
def test_workers_get_the_same_tokens(tmp_path, tokenizer):
    """A worker that is spawned gets the data set as a pickle."""
    write_episodes(tmp_path)
    dataset = built(tmp_path, {"use_reasoning": True}).train_dataset
    again = pickle.loads(pickle.dumps(dataset))
    assert_same(collate(again.__getitems__([6, 7, 8])), dataset.__getitems__([6, 7, 8]))


@pytest.mark.slow
def test_training_never_waits_for_the_tokenizer(tmp_path, tokenizer):
    """The tokens of each text are known before the first batch, in every worker process."""
    write_episodes(tmp_path)
    bundle = built(tmp_path, {"use_reasoning": True, "use_prev_subtask": True}, phrasings={"lift it": ["raise it"]})
    before = everything(bundle.train_dataset)
    again = built(tmp_path, {"use_reasoning": True, "use_prev_subtask": True}, phrasings={"lift it": ["raise it"]})
    again.train_dataset.encoder.prompts.tokenizer = SimpleNamespace(padding_side="right")
    assert_same(everything(again.train_dataset), before)


@pytest.mark.slow
def test_the_vocabulary_has_the_largest_id_of_a_tokenizer_with_gaps(tmp_path, tokenizer):
    write_episodes(tmp_path)
    file = tmp_path / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["far"] = 900
    file.write_text(json.dumps(content))
    assert built(tmp_path).dims["vocab_size"] == 901 > len(tokenizer) + 1


@pytest.mark.slow
def test_a_folder_without_instructions_in_a_mixture_is_named(tmp_path, tokenizer):
    write_episodes(tmp_path)
    write_act_episode(tmp_path / "silent/episode_0.hdf5", 5, (3, 2))
    paths = [str(tmp_path / name) for name in ("act", "silent")]
    lines = [line for line in built(tmp_path, path=paths).summary if "has an instruction" in line]
    assert len(lines) == 1 and paths[1] in lines[0]


# ---- bad input ----


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"prompt": "do it"}, "dataset.prompt"),
        ({"prompt": "{instruction} {goal}"}, "goal"),
        ({"prompt": "{instruction} {state}"}, "dataset.normalization.state"),
    ],
)
def test_bad_templates(keys, named):
    with pytest.raises(ValueError, match=named) as raised:
        Config(path="x", **keys)
    assert "\n" not in str(raised.value)


def test_no_tokenizer_is_known(tmp_path):
    write_episodes(tmp_path)
    run = run_of(tmp_path)
    (line,) = check(config_of(tmp_path, tokenizer=None), run)
    assert "dataset.tokenizer" in line and "model_name_or_path" in line
    run.process.model_name_or_path = str(tmp_path / "tokenizer")
    assert check(config_of(tmp_path, tokenizer=None), run) == []
    with pytest.raises(ValueError, match="the tokenizer of .* cannot be loaded"):
        build(config_of(tmp_path, tokenizer=None), run)
    tokenizer = tokenizer_in(tmp_path / "tokenizer")
    assert build(config_of(tmp_path, tokenizer=None), run).dims["vocab_size"] == len(tokenizer)


def test_keys_of_texts_are_refused_without_a_language_model(tmp_path):
    write_episodes(tmp_path)
    run = run_of(tmp_path)
    run.model.config = SimpleNamespace()
    wordings = {
        "phrasings": {"lift it": ["raise it"]},
        "max_prompt_tokens": 5,
        "max_target_tokens": 5,
        "prompt": "{instruction}",
    }
    lines = check(config_of(tmp_path, **wordings), run)
    assert {line.split()[0] for line in lines} == {f"dataset.{name}" for name in ("tokenizer", *wordings)}
    assert check(config_of(tmp_path, tokenizer=None), run) == []


@pytest.mark.parametrize(
    ("model", "kind", "refused"),
    [
        ({"head": "tokens", "action_tokenizer": "bins"}, "zscore", True),
        ({"head": "tokens", "action_tokenizer": "bins"}, "percentiles", False),
        ({"head": "tokens", "action_tokenizer": "fast.json"}, "zscore", False),
        ({"head": "flow", "action_tokenizer": "bins", "clip_sample": True}, "zscore", False),
        ({"head": "diffusion", "action_tokenizer": "bins", "clip_sample": True}, "percentiles", True),
    ],
)
def test_actions_must_be_in_the_range_of_the_head(tmp_path, model, kind, refused):
    write_episodes(tmp_path)
    run = run_of(tmp_path)
    vars(run.model.config).update(model)
    lines = check(config_of(tmp_path, normalization={"action": kind}), run)
    assert [line.split(":")[0] for line in lines] == ["dataset.normalization.action"] * refused


@pytest.mark.parametrize("model", [{"head": "diffusion", "clip_sample": True}, {"head": "tokens"}])
def test_a_dimension_without_normalization_must_be_in_the_range_of_the_head(tmp_path, tokenizer, model):
    action = np.linspace(-1, 1, LENGTH)[:, None] * [1.0, 40.0]
    write_episodes(tmp_path, action=action)
    run = run_of(tmp_path)
    vars(run.model.config).update({"action_tokenizer": "bins", **model})
    for mask, refused in (([False, True], False), ([True, False], True)):
        keys = {"normalization": {"action": "min_max"}, "normalization_mask": {"action": mask}}
        if refused:
            with pytest.raises(ValueError, match="normalization_mask.action is false for dimension 1, .* -40 to 40"):
                build(config_of(tmp_path, **keys), run)
        else:
            build(config_of(tmp_path, **keys), run)


@pytest.mark.slow
def test_texts_that_are_missing(tmp_path, tokenizer):
    write_episodes(tmp_path)
    with h5py.File(tmp_path / "act/episode_1.hdf5", "a") as root:
        del root["reasoning"]
    for key in ("use_reasoning", "use_prev_subtask"):
        with pytest.raises(ValueError, match=f"{key} .*episode_1.hdf5"):
            built(tmp_path, {key: True})
    write_episodes(tmp_path)
    with pytest.raises(ValueError, match="select_seg_token_mask"):
        built(tmp_path, {"use_reasoning": True, "select_seg_token_mask": True})
    write_episodes(tmp_path, reasoning=["<seg>a"] * LENGTH)
    with pytest.raises(ValueError, match="act: .*<seg>a"):
        built(tmp_path, {"use_reasoning": True})
    for number in range(2):
        with h5py.File(tmp_path / f"act/episode_{number}.hdf5", "a") as root:
            del root.attrs["instruction"]
    with pytest.raises(ValueError, match="instruction"):
        built(tmp_path)


def test_a_tokenizer_without_an_end(tmp_path, tokenizer):
    write_episodes(tmp_path)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="eos_token"):
        built(tmp_path, {"use_reasoning": True})
    assert built(tmp_path).dims["eos_token_id"] is None


def fed_back(tmp_path, **keys):
    """A bundle of a policy that writes the subtasks of which the previous one is in its prompt."""
    write_episodes(tmp_path)
    return built(tmp_path, {"use_reasoning": True, "use_prev_subtask": True}, **keys)


@pytest.mark.slow
def test_a_policy_that_writes_its_subtasks_does_not_know_the_current_one(tmp_path, tokenizer):
    """With chunks of one action a prompt is as of the step before; with longer ones as of a step in the last chunk."""
    steps = [0] + previous_subtasks(np.array([1] * 4 + [2] * 3 + [1] * 2 + [3] * 3), np.array([0, LENGTH])).tolist()
    names = [None, "reach", "grasp it", "lift"]
    for chunk_size in (1, 5):
        batch = everything(fed_back(tmp_path, chunk_size=chunk_size).train_dataset)
        found = []
        for step in range(LENGTH):
            row = tokenizer.decode(batch["prompt_ids"][step][batch["prompt_mask"][step]]).strip()
            said = row.partition(" Previous subtask: ")[2] or None
            known = [names[code] for code in steps[max(0, step + 1 - chunk_size) : step + 1]]
            assert said in known, (step, said, known)
            found.append(said)
    assert found != [names[code] for code in steps[:LENGTH]], "not always as of the step before"


@pytest.mark.parametrize("reads", ["subtask", "line", "other"])
def test_where_a_reasoning_has_the_subtask(tmp_path, tokenizer, reads):
    """The whole text or its line; else each observation has it."""
    parts = {"reasoning/direction": np.array(["left"] * LENGTH, object)} if reads == "line" else {}
    write_episodes(tmp_path, reasoning=["go on"] * LENGTH if reads == "other" else None, **parts)
    prompts = built(tmp_path, {"use_reasoning": True, "use_prev_subtask": True}).processor.prompts
    assert prompts.feeds_back == (reads != "other")
    assert subtask_in("subtask: grasp it\ndirection: left") == subtask_in(" grasp it") == "grasp it"


def test_its_own_subtasks_are_in_its_prompts(tmp_path, tokenizer):
    """A session adds what the model writes; a new episode begins without."""
    bundle = fed_back(tmp_path)
    seen, script = [], iter(["reach", "reach", "lift", "reach", "", "lift"])

    def model(prompt_ids, prompt_mask, **inputs):
        seen.append(tokenizer.decode(prompt_ids[0][prompt_mask[0]]).strip())
        ids = [*tokenizer(next(script))["input_ids"], tokenizer.eos_token_id]
        return {"actions": torch.zeros(1, 4, 2), "target_ids": torch.tensor([ids])}

    model.device = "cpu"
    session = bundle.processor.session(model)
    for step in range(5):
        session.act({"observations/qpos": np.full(3, step), "instruction": "lift it"})
    session.reset()
    session.act({"observations/qpos": np.zeros(3), "instruction": "lift it", "subtask": "reach"})
    previous = ["", "", "", "reach", "lift", ""]
    assert seen == ["lift it" + (f" Previous subtask: {text}" if text else "") for text in previous]
