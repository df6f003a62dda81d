"""Write a checkpoint as a clean folder: `python -m models.export --checkpoint DIR [--merge] --out DIR`.

With --merge an adapter's weights are added to its base's, and quantized weights become plain numbers: config.json and
model.safetensors, which load anywhere and whose outputs are the checkpoint's (up to rounding in the weights' type:
about 1e-5 in float32, 5e-2 in bfloat16; an 8-bit layer also rounds what enters it, so there up to 5e-2). Without it an
adapter stays an adapter, with everything it needs beside it. Statistics, run.yaml and tokenizer files come along.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from models.adapt.checks import ADAPTATION, BASE, QUANTIZED

# What belongs to training, or is written again.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
LEFT_BEHIND = {
    "trainer_state.json", "metrics.jsonl", "metrics.csv", "checkpoints.json", "ema.json", "skipped_steps.json",
    "log_interval.json", "model.safetensors.index.json", "adapter_config.json", ADAPTATION,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Exports what the command line names; a mistake ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m models.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="a run's output folder, or a checkpoint-N in it")
    parser.add_argument("--out", required=True, type=Path, help="the new folder")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--merge", action="store_true", help="merge the adapter: plain weights, nothing quantized")
    asked = parser.parse_args(arguments)
    try:
        export(asked.checkpoint.expanduser(), asked.out.expanduser(), asked.merge, asked.trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError, RecursionError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{'merged weights' if asked.merge else 'a copy'} of {asked.checkpoint} in {asked.out}")


def export(checkpoint: Path, out: Path, merge: bool, trust_remote_code: bool = False) -> None:
    """Writes the checkpoint's model, and the small files beside it, to `out`.

    Raises:
        ValueError: the checkpoint is none, its base is missing, or `out` is not empty.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} holds no config.json: it is not a finished run or checkpoint")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is not an empty folder; name a new one")
    check_files(checkpoint)
    module = component_of(checkpoint)
    if merge:
        from models.adapt.adapter_io import plain_model

        model = plain_model(checkpoint, module, trust_remote_code)
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(out))
    else:
        out.mkdir(parents=True, exist_ok=True)
        _copy_model(checkpoint, out)
    for file in sorted(checkpoint.iterdir()):
        wanted = file.suffix not in WEIGHTS and file.name not in LEFT_BEHIND and not (out / file.name).exists()
        if file.is_file() and wanted:
            shutil.copy2(file, out / file.name)


def check_files(checkpoint: Path) -> None:
    """Refuses a folder with a file that cannot be read, before anything is written.

    Raises:
        ValueError: names the file.
    """
    from safetensors import SafetensorError, safe_open

    needed = {"adapter_config.json", ADAPTATION}
    training = [name for name in LEFT_BEHIND - needed if not name.startswith("model.")]
    files = [file for file in sorted(checkpoint.iterdir()) if file.name not in (*training, "ema.safetensors")]
    files += sorted(checkpoint.glob(f"{BASE}/*"))
    weights = [file for file in files if file.suffix == ".safetensors"]
    for file in files:
        try:
            if file.suffix == ".json":
                config = json.loads(file.read_text(encoding="utf-8"))
                assert isinstance(config, dict) and (config or file.name != "config.json")
            elif file in weights:
                with safe_open(file, framework="pt") as opened:
                    opened.keys()
        except (ValueError, OSError, SafetensorError, AssertionError) as error:
            raise ValueError(f"{file} is damaged ({error or 'not a mapping'}); export another checkpoint") from None
    names = {file.name for file in files}
    if not weights and not names & {"model.safetensors.index.json"}:
        raise ValueError(f"{checkpoint} holds no weights (*.safetensors); export a finished run or checkpoint")
    if "adapter_model.safetensors" in names and "adapter_config.json" not in names:
        raise ValueError(f"{checkpoint} has an adapter and no adapter_config.json; export another checkpoint")


def component_of(checkpoint: Path) -> ModuleType:
    """The module that the checkpoint's model comes from, by adaptation.json or else by run.yaml.

    Raises:
        ValueError: neither says, or there is no such module.
    """
    name = None
    if (checkpoint / ADAPTATION).is_file():
        name = json.loads((checkpoint / ADAPTATION).read_text(encoding="utf-8")).get("module")
        if not isinstance(name, str):
            raise ValueError(f"{checkpoint / ADAPTATION} does not say which module its model is of (`module`)")
    elif (checkpoint / "run.yaml").is_file():
        import yaml

        try:
            # Its plainest loader reads every value as text: somebody else's file may hold anything.
            text = (checkpoint / "run.yaml").read_text(encoding="utf-8")
            config = yaml.load(text, Loader=yaml.BaseLoader)["model"]["name"]
        except (yaml.YAMLError, TypeError, KeyError, RecursionError):
            raise ValueError(f"{checkpoint / 'run.yaml'} does not name the model (`model: {{name: …}}`)") from None
        name = config if "." in config else f"models.{config}"
    if not name:
        raise ValueError(f"{checkpoint} has neither {ADAPTATION} nor a run.yaml that names its model")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"the model of {checkpoint} is of module {name}, which cannot be imported: {error}") from None


def _copy_model(checkpoint: Path, out: Path) -> None:
    """The model's own files as they are; an adapter's base comes along, or stays where its path says."""
    names = ("config.json", "generation_config.json", ADAPTATION, QUANTIZED, "adapter_config.json")
    weights = [file for pattern in ("model*.safetensors*", "adapter_model*") for file in checkpoint.glob(pattern)]
    for file in [*(checkpoint / name for name in names), *weights]:
        if file.is_file():
            shutil.copy2(file, out / file.name)
    if (checkpoint / BASE).is_dir():
        shutil.copytree(checkpoint / BASE, out / BASE)
        settings = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = os.path.abspath(out / BASE)
        (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
