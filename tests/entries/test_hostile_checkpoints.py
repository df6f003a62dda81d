"""Malicious checkpoints, models and data: each is refused with one line, and no code of it runs.

The payload creates the folder EXECUTED in the working folder.
"""

import contextlib
import json
import os
import pickle
import shlex
import shutil
import struct
import sys

import h5py
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from audited import watching
from demonstration_files import write_act_folder
from run_results import error_line
from safetensors.torch import load_file
from text_sets import SMALL, write_set

import eval as evaluation
import prepare
import train
from loader.errors import ConfigError
from storage import manifest

pytestmark = pytest.mark.slow

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
}


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set and two small runs on it: one with checkpoints 3 and 6, one of an adapter with its base."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEEL_HOME", str(folder / "home"))
        patch.chdir(folder)
        write_set(folder / "data")
        train.main(shlex.split(f"--dataset data {SMALL} --out_dir run --set report_to=none"))
        adapted = "lora_enable=true lora_r=2 lora_module=all-linear"
        train.main(shlex.split(f"--dataset data {SMALL} --out_dir adapter --set report_to=none {adapted}"))
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A working folder with the data, the adapter, and two copies of the run; tests change the copy `run`."""
    for name, source in (("data", "data"), ("run", "run"), ("whole", "run"), ("adapter", "adapter")):
        shutil.copytree(trained / source, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the question whether code may run
    return tmp_path


@pytest.fixture
def refused(place, capsys):
    """`refused(arguments, main)`: the error line of an entry point, which must exit with code 2."""

    def run(line, main=train.main):
        with watching(place / "nothing") as changes:
            error = error_line(capsys, main, shlex.split(line))
        assert not (place / "EXECUTED").exists()
        assert not [change for change in changes if "connect" in change or "Popen" in change]
        assert error.isprintable() and len(error) < 2100
        return error

    return run


def edit(path, **changes):
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remove_checkpoints(run):
    for path in run.glob("checkpoint-*"):
        shutil.rmtree(path)


RUN = f"--dataset data {SMALL} --output_dir out --set report_to=none"


def sign(checkpoint):
    """Write a manifest that fits the changed files."""
    content = json.loads((checkpoint / manifest.NAME).read_text())
    facts = {name: value for name, value in content.items() if name not in ("format", "files", "step", "world_size")}
    manifest.write(checkpoint, step=content["step"], world_size=content["world_size"], **facts)


def pickled(path, place):
    torch.save({"weight": Payload(place / "EXECUTED")}, path)


# ---- pickles ----


def test_the_payload_would_run(place):
    """The payload of these tests works if the file is unpickled."""
    pickled(place / "x.bin", place)
    torch.load(place / "x.bin", weights_only=False)
    assert (place / "EXECUTED").is_dir()


def old_checkpoint(folder, place):
    """A checkpoint in the format of transformers, all files are pickles with the payload."""
    folder.mkdir(parents=True)
    shutil.copy(place / "whole/run.yaml", folder)
    for name in ("trainer_state.json", "config.json"):
        shutil.copy(place / "whole/checkpoint-3" / name, folder)
    for name in ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        pickled(folder / name, place)
    return folder


def test_a_pickled_checkpoint_is_not_resumed(refused, place):
    old_checkpoint(place / "old/checkpoint-3", place)
    assert "checkpoint-3" in refused(f"{RUN} --resume_from_checkpoint old/checkpoint-3")
    for name in ("checkpoint-3", "checkpoint-6"):
        shutil.rmtree(place / "run" / name)
        old_checkpoint(place / "run" / name, place)
    assert "checkpoint" in refused("--init_from resume --out_dir run")


def test_pickled_weights_in_a_checkpoint_with_a_new_manifest(refused, place):
    checkpoint = place / "run/checkpoint-6"
    (checkpoint / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        pickled(checkpoint / name, place)
    sign(checkpoint)
    assert "has no" in refused(f"{RUN} --resume_from_checkpoint run/checkpoint-6")


@pytest.mark.parametrize("key", ["is_pretrained", "load_pretrain"])
def test_pickles_as_first_weights(refused, place, key):
    old_checkpoint(place / "old", place)
    (place / "run/model.safetensors").unlink()
    pickled(place / "run/pytorch_model.bin", place)
    remove_checkpoints(place / "run")
    for name in ("run", "old"):
        assert name in refused(f"{RUN} model_name_or_path={name} {key}=true")


def foreign_model(folder, **changes):
    """A llama's folder without weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def add_weights(folder):
    """Add weights in safetensors."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    model.save_pretrained(folder)
    return folder


AUTO = f"{RUN} --model_config auto --set dataset.block_size=16 model_name_or_path=base"
AUTO = " ".join(AUTO.replace("--n_layer 1 --n_head 2 --n_embd 16", "").split())


GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 20, "n_positions": 32}


@pytest.mark.parametrize(
    ("line", "config", "name"),
    [
        (AUTO, LLAMA, "pytorch_model.bin"),
        (AUTO, LLAMA, "model.pt"),
        (AUTO, LLAMA, "pytorch_model.bin.index.json"),
        (f"{RUN} model_name_or_path=base", GPT2, "pytorch_model.bin"),
    ],
)
def test_a_pickled_model(refused, place, line, config, name):
    (place / "base").mkdir()
    (place / "base/config.json").write_text(json.dumps(config))
    pickled(place / "base" / name.removesuffix(".index.json"), place)
    if name.endswith("json"):
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model.bin"}}
        (place / "base" / name).write_text(json.dumps(index))
    assert "base" in refused(line)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/outside.safetensors", "pytorch_model.bin", 7, None, "a\0b"]
)
def test_an_index_that_names_files_outside_its_folder(refused, place, name):
    """transformers joins any name in the index to the folder."""
    add_weights(foreign_model(place / "base"))
    tensors = load_file(place / "base/model.safetensors")
    (place / "base/model.safetensors").rename(place / "outside.safetensors")
    pickled(place / "base/pytorch_model.bin", place)
    name = str(place / "outside.safetensors") if name == "/outside.safetensors" else name
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, name)}
    (place / "base/model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json" in refused(AUTO)


@pytest.mark.parametrize("name", ["../outside.safetensors", "pytorch_model.bin", "adapter_model.bin"])
def test_a_configuration_that_names_its_weights(refused, place, name):
    add_weights(foreign_model(place / "base", transformers_weights=name))
    foreign_model(place / "base", transformers_weights=name)
    (place / "base/model.safetensors").rename(place / "outside.safetensors")
    for file in ("pytorch_model.bin", "adapter_model.bin"):
        pickled(place / "base" / file, place)
    assert "base" in refused(AUTO)


# ---- safetensors ----


def tensors_file(header, content=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


BROKEN = {
    "a header length beyond the memory": tensors_file({}, length=2**63),
    "deep lists": tensors_file(b"[" * 100_000),
    "beyond the end": tensors_file({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 2**40]}}, b"\0" * 16),
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_damaged_safetensors(refused, place, content):
    foreign_model(place / "base")
    (place / "base/model.safetensors").write_bytes(content)
    assert "base" in refused(AUTO)
    (place / "run/model.safetensors").write_bytes(content)
    remove_checkpoints(place / "run")
    assert "run" in refused(f"{RUN} model_name_or_path=run is_pretrained=true")
    assert "run" in refused("--checkpoint run", evaluation.main)


# ---- code that comes with a model ----

CODE = """
import os
os.makedirs({executed!r}, exist_ok=True)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass

def generate(model, *args, **kwargs):
    return None
"""


@pytest.fixture
def with_code(place):
    """A model with the code of its architecture in its folder."""
    add_weights(foreign_model(place / "base"))
    (place / "base/own.py").write_text(CODE.format(executed=str(place / "EXECUTED")))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    foreign_model(place / "base", model_type="own-llama", architectures=["OwnModel"], auto_map=auto_map)
    return place / "base"


def test_code_of_a_model_runs_only_when_it_is_trusted(refused, place, with_code):
    assert "trust_remote_code" in refused(AUTO)
    train.main([*shlex.split(AUTO), "trust_remote_code=true"])
    assert (place / "EXECUTED").exists()


def test_the_code_of_a_known_architecture_does_not_run(place, with_code):
    foreign_model(with_code, auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})
    (with_code / "custom_generate").mkdir()
    (with_code / "own.py").rename(with_code / "custom_generate/generate.py")
    with contextlib.suppress(SystemExit, ConfigError):
        train.main(shlex.split(AUTO))
    assert not (place / "EXECUTED").exists()


def test_a_checkpoint_cannot_trust_itself(refused, place, with_code):
    """trust_remote_code in adaptation.json and run.yaml does not count, only the user's flag."""
    lora = "lora_enable=true lora_r=2 lora_module=[q_proj] lora_task_type=CAUSAL_LM"
    train.main([*shlex.split(AUTO), *lora.split(), "trust_remote_code=true"])
    (place / "EXECUTED").rmdir()
    shutil.rmtree(place / "modules", ignore_errors=True)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    edit(place / "out/adaptation.json", trust_remote_code=True)
    line = AUTO.replace("=base", "=out").replace("dir out", "dir again")
    assert "trust_remote_code" in refused(f"{line} is_pretrained=true")
    assert "trust_remote_code" in refused("--checkpoint out", evaluation.main)
    evaluation.main(["--checkpoint", "out", "--trust_remote_code"])
    assert (place / "EXECUTED").exists()


def test_code_of_a_tokenizer(refused, place, with_code):
    tokenizer = json.loads((place / "data/tokenizer_config.json").read_text())
    shutil.copy(place / "data/tokenizer.json", with_code)
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (with_code / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (place / "text.txt").write_text("abc def\n" * 200)
    (place / "records.jsonl").write_text('{"text": "abc def abc def"}\n' * 40)
    refused("--dataset x --text text.txt --tokenizer base --out prepared", prepare.main)
    (place / "records.yaml").write_text(
        "task_name: records\nmax_steps: 1\noutput_dir: out\nreport_to: none\n"
        "dataset: {path: records.jsonl, tokenizer: base, block_size: 16}\n"
        "model: {config: {model_type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}}\n"
    )
    assert "trust_remote_code" in refused("--training_config records.yaml")
    config = json.loads((place / "data/tokenizer_config.json").read_text()) | tokenizer
    (place / "data/tokenizer_config.json").write_text(json.dumps(config))
    shutil.copy(with_code / "own.py", place / "data")
    with contextlib.suppress(SystemExit, ConfigError):
        train.main(shlex.split(RUN))
    assert not (place / "EXECUTED").exists()


# ---- adapters ----


ADAPTED = f"{RUN} lora_enable=true lora_weight_path=adapter"


def test_pickled_adapters(refused, place):
    (place / "adapter/adapter_model.safetensors").unlink()
    pickled(place / "adapter/adapter_model.bin", place)
    assert "adapter" in refused(ADAPTED)
    assert "adapter" in refused("--checkpoint adapter", evaluation.main)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "NO_SUCH"},
        {"r": -1},
        {"r": 10**9},
        {"target_modules": "("},
        {"target_modules": ["no_such"]},
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
    ],
    ids=str,
)
def test_settings_of_an_adapter(refused, place, changes):
    edit(place / "adapter/adapter_config.json", **changes)
    assert "adapter" in refused(ADAPTED)
    assert "adapter" in refused("--checkpoint adapter", evaluation.main)


@pytest.mark.parametrize("base", ["old", "/etc/passwd", "../../../../etc", "org/model", "http://127.0.0.1:9/x", 7])
def test_a_base_model_elsewhere(refused, place, base):
    """If the base is not beside the adapter, adaptation.json names it."""
    old_checkpoint(place / "old", place)
    shutil.rmtree(place / "adapter/base")
    edit(place / "adapter/adaptation.json", base=base)
    refused("--checkpoint adapter", evaluation.main)


# ---- a configuration that came with a checkpoint ----


def test_code_beside_a_checkpoint_is_not_imported(place, refused, monkeypatch):
    """`run.payload` names the file run/payload.py, since a folder in the working folder is a package."""
    monkeypatch.syspath_prepend(place)
    (place / "run/payload.py").write_text(f"import os\nos.mkdir({str(place / 'EXECUTED')!r})\n")
    (place / "run/__init__.py").write_text(f"import os\nos.mkdir({str(place / 'EXECUTED')!r})\n")
    text = (place / "run/run.yaml").read_text()
    for section, name in (("model", "gpt"), ("dataset", "text")):
        assert f"  name: {name}  #" in text, section
        (place / "run/run.yaml").write_text(text.replace(f"  name: {name}  #", "  name: run.payload  #"))
        assert "run.payload" in refused("--checkpoint run", evaluation.main)
        assert "run.payload" in refused("--training_config run/run.yaml --out_dir x --check")
    assert "run" not in sys.modules


def test_hostile_yaml_in_a_checkpoint(place, refused):
    for text in ("a: !!python/object/apply:os.system ['mkdir EXECUTED']\n", "a: " + "[" * 10**6, "- 1\n", "\xff", ""):
        (place / "run/run.yaml").write_bytes(text.encode("latin-1"))
        refused("--checkpoint run", evaluation.main)


@pytest.mark.parametrize("name", ["../../../EXECUTED", "/etc/passwd", "a/../../x", "", ".", "..", "a\0b", "x\\..\\y"])
def test_a_manifest_that_names_files_outside_its_folder(refused, place, name):
    path = place / "run/checkpoint-6/manifest.json"
    edit(path, files={**json.loads(path.read_text())["files"], name: {"size": 0, "sha256": "0" * 64}})
    assert "checkpoint-6" in refused(f"{RUN} --resume_from_checkpoint run/checkpoint-6")


# ---- data ----


def test_a_pickled_vocabulary(refused, place):
    (place / "data/meta.json").unlink()
    (place / "data/meta.pkl").write_bytes(pickle.dumps({"vocab_size": Payload(place / "EXECUTED")}))
    assert "meta.pkl" in refused(RUN)


def test_object_arrays_and_links_in_an_episode(refused, place):
    """Data that are not plain numbers are refused by type."""
    write_act_folder(place / "episodes", (12, 12))
    line = "--task_name task.yaml --model_config mlp --output_dir out --set report_to=none dataset.chunk_size=3"
    (place / "task.yaml").write_text("dataset: {name: demonstrations, path: episodes}\n")
    objects = np.empty(12, dtype=h5py.vlen_dtype(np.uint8))
    objects[:] = [np.frombuffer(pickle.dumps(Payload(place / "EXECUTED")), np.uint8) for _ in range(12)]
    for content in (
        objects,
        ["a"] * 12,
        np.empty(12, dtype=h5py.ref_dtype),
        h5py.ExternalLink("nothing.hdf5", "/action"),
        h5py.ExternalLink("/dev/null", "/action"),
        h5py.SoftLink("/action"),
    ):
        with h5py.File(place / "episodes/episode_1.hdf5", "a") as file:
            with contextlib.suppress(KeyError):
                del file["action"]
            file["action"] = content
        assert "episode_1.hdf5" in refused(line), content
