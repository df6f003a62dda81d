"""Write a checkpoint as a clean folder: `python -m models.export --checkpoint DIR [--merge] --out DIR`.

With --merge an adapter's weights are added to its base's, and quantized weights become plain numbers: config.json and
model.safetensors, which load anywhere and give the checkpoint's outputs (up to rounding in the weights' type: about
1e-5 in float32, 5e-2 in bfloat16; an 8-bit layer also rounds its inputs, which makes up to 5e-2). Without it an
adapter stays an adapter, with everything it needs beside it. Statistics, run.yaml and tokenizer files are copied too;
a manifest is written for the new folder.
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
from models.adapt.optional_imports import hide_kernel_warning
from storage import manifest

# Files of the model, and of other files those that belong to training.
MODEL = ("config.json", "generation_config.json", ADAPTATION, QUANTIZED, "adapter_config.json")
MODEL_PATTERNS = ("model*.safetensors*", "adapter_model*")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
TRAINING = {
    "trainer_state.json", "metrics.jsonl", "metrics.csv", "checkpoints.json", "ema.json", "skipped_steps.json",
    "log_interval.json", manifest.NAME,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Export as the command line asks; bad input ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m models.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="a run's output folder, or a checkpoint-N in it")
    parser.add_argument("--out", required=True, type=Path, help="the new folder")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--merge", action="store_true", help="merge the adapter: plain weights, nothing quantized")
    asked = parser.parse_args(arguments)
    hide_kernel_warning()
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        export(asked.checkpoint.expanduser(), asked.out.expanduser(), asked.merge, asked.trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError, RecursionError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{'merged weights' if asked.merge else 'a copy'} of {asked.checkpoint} in {asked.out}")


def export(checkpoint: Path, out: Path, merge: bool, trust_remote_code: bool = False) -> None:
    """Write the checkpoint's model, and the small files beside it, to `out`.

    Raises:
        ValueError: there is no checkpoint, a file or its base is missing or damaged, or `out` is not empty.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} has no config.json: it is not a finished run or checkpoint")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is not an empty folder; name a new one")
    files = [checkpoint / name for name in MODEL]
    files = [file for file in files if file.is_file()] + [f for p in MODEL_PATTERNS for f in checkpoint.glob(p)]
    others = [file for file in sorted(checkpoint.iterdir()) if file.is_file() and file not in files]
    others = [file for file in others if file.suffix not in WEIGHTS and file.name not in TRAINING]
    check_files(checkpoint, [*files, *others, *sorted(checkpoint.glob(f"{BASE}/*"))])
    module = component_of(checkpoint)
    if merge:
        from models.adapt.saved_model import plain_model

        model = plain_model(checkpoint, module, trust_remote_code)
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(out))
        files = []
    out.mkdir(parents=True, exist_ok=True)
    for file in [*files, *others]:
        shutil.copy2(file, out / file.name)
    if not merge and (checkpoint / BASE).is_dir():
        shutil.copytree(checkpoint / BASE, out / BASE)
        settings = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = os.path.abspath(out / BASE)
        (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if (checkpoint / manifest.NAME).is_file():
        described = manifest.read(checkpoint)
        facts = {name: value for name, value in described.items() if name not in ("format", "files")}
        manifest.write(out, **facts)


def check_files(checkpoint: Path, files: list[Path]) -> None:
    """Refuse a checkpoint of which a file is missing or cannot be read, before anything is written.

    Raises:
        ValueError: names the file.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            if file.suffix == ".json" and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
                raise ValueError("not a mapping")
            if file.suffix == ".safetensors":
                safe_open(file, framework="pt").keys()
        except (ValueError, OSError, RecursionError, SafetensorError) as error:
            raise ValueError(f"{file} is damaged ({error}); export another checkpoint") from None
    names = {file.name for file in files}
    if not any(name.startswith(("model", "adapter_model")) for name in names):
        raise ValueError(f"{checkpoint} has no weights (*.safetensors); export a finished run or checkpoint")
    if "adapter_model.safetensors" in names and "adapter_config.json" not in names:
        raise ValueError(f"{checkpoint} has an adapter and no adapter_config.json; export another checkpoint")


def component_of(checkpoint: Path) -> ModuleType:
    """Import the component module of the checkpoint's model, which adaptation.json names.

    Raises:
        ValueError: it does not, or there is no such module.
    """
    settings = checkpoint / ADAPTATION
    if not settings.is_file():
        raise ValueError(f"{checkpoint} has no {ADAPTATION}, which names the module of its model; export a run of Keel")
    name = json.loads(settings.read_text(encoding="utf-8")).get("module")
    if not isinstance(name, str):
        raise ValueError(f"{settings} does not name the module of its model (`module`)")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"the model of {checkpoint} is of module {name}, which cannot be imported: {error}") from None


if __name__ == "__main__":
    main()
