"""Prepare data: robot demonstrations recorded in simulation or converted, or a text as token ids.

python prepare.py --task_name TASK [--num_episodes 50]
python prepare.py --export lerobot --task_name TASK --out DIR      (the task's demonstrations as a LeRobot data set)
python prepare.py --convert DIR --out DIR            (HDF5 episodes to LeRobot, or LeRobot to HDF5)
python prepare.py --action_tokenizer fast:1024 --task_name TASK --out FILE   (FAST: actions as tokens)
python prepare.py --dataset NAME --text FILE|DIR|HF-dataset-id --tokenizer char|bytes|bpe:N|PATH-or-hub-id
python prepare.py --dataset shakespeare_char          (or another data set that is known by name)
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loader.command_line.entry import check_output, command_line, entry_flags, refuse_useless, refusing
from loader.errors import ConfigError, quoted
from loader.resolve.resolver import resolve
from loader.resolve.run_config import RunConfig
from loader.schema.hyper_arguments import HyperArguments
from loader.schema.keys import component_module, shipped
from storage import atomic
from storage.config_keys import RemembersGiven, key
from storage.lock import exclusive
from storage.safe_read import read_json
from storage.suggestions import did_you_mean

DEFAULT_EPISODES = 50
# Of the expert's full variation: enough that no two demonstrations are alike, little enough that the same start still
# means nearly the same motion, which is what fifty demonstrations can teach.
DEFAULT_JITTER = 0.3
INTERRUPTED = 130  # as shells have it: 128 + SIGINT


@dataclass
class PrepareArguments(RemembersGiven):
    """What to prepare: a task's recording, or (--dataset) a text."""

    # A recording
    task_name: str = key("sim_transfer_cube_state", "Task: a file in configs/task/, or a path.")
    num_episodes: int = key(DEFAULT_EPISODES, "Episodes the folder shall hold; those already recorded are kept.", ge=1)
    seed: int = key(0, "Seed of the recording: start positions and the expert's variation.", ge=0)
    jitter: float = key(DEFAULT_JITTER, "Random variation of the expert's motion; 0 for none, 1 for much.", ge=0, le=3)
    source: str | None = key(None, "What the task's data is made from, if it is made: a folder, or an id of the hub.")
    set: list[str] = key([], "Override any key of the task's configuration: --set env.cameras=[top].")
    # A conversion
    export: Literal["lerobot"] | None = key(None, "Conversion: write the task's demonstrations in this format.")
    convert: str | None = key(
        None, "Conversion: a folder of HDF5 episodes, written as LeRobot v3.0, or a LeRobot data set, written as HDF5."
    )
    fps: float | None = key(None, "Conversion: control rate of HDF5 episodes that do not say it, in Hz.", gt=0)
    instruction: str | None = key(
        None, "Conversion: task text of HDF5 episodes that have none. Default: the name of the task or folder."
    )
    vcodec: Literal["libsvtav1", "libx264"] = key("libsvtav1", "Conversion: encoder of the videos.")
    crf: int = key(30, "Conversion: loss of the videos on the encoder's scale; less is better and larger.", ge=0, le=63)
    # Action tokens
    action_tokenizer: str | None = key(
        None,
        "Action tokens: fast:N or fast:N:SCALE, FAST with N tokens learnt from the task's demonstrations; a higher "
        "scale than 10 makes actions finer and longer. For model.action_tokenizer.",
    )
    # A text
    dataset: str | None = key(None, "Text: name of the data set, as train.py --dataset finds it.")
    text: str | None = key(
        None, "Text: a file, a folder of files, .jsonl, .parquet, or a dataset of the hub (org/name[:configuration])."
    )
    tokenizer: str | None = key(None, "Text: char, bytes, bpe:N (learnt from the text), or a tokenizer's path or id.")
    val_fraction: float = key(
        0.1, "Text: share that validates: a file's end, or every 10th document (0.1).", gt=0, lt=1
    )
    val_text: str | None = key(None, "Text: a file or folder that validates, in place of a share.")
    text_column: str | None = key(None, "Text: the column of .jsonl, .parquet and hub datasets. Default: text.")
    split: str | None = key(None, "Text: split of a hub dataset. Default: train.")
    newlines: Literal["keep", "lf"] = key(
        "keep", "Text: keep carriage returns, or turn every line end into a line feed."
    )
    out: str | None = key(
        None,
        "Text, conversion: folder to write; action tokens: file. Default of a text: $KEEL_HOME/datasets/NAME.",
    )
    overwrite: bool = key(False, "Text: prepare again what was prepared from other text or settings.")
    # Both
    num_workers: int | None = key(None, "Recording or tokenizing processes. Default: one a core.", ge=1)


OF_A_TEXT = ("text", "tokenizer", "val_fraction", "val_text", "text_column", "split", "newlines", "overwrite")
OF_A_CONVERSION = ("out", "fps", "instruction", "vcodec", "crf")
# The flag that says what is prepared -> the flags that matter to it.
FLAGS = {
    "dataset": (*OF_A_TEXT, "out", "num_workers"),
    "convert": OF_A_CONVERSION,
    "export": (*OF_A_CONVERSION, "task_name", "set"),
    "action_tokenizer": ("out", "task_name", "set"),
    "task_name": ("num_episodes", "seed", "jitter", "source", "set", "num_workers"),
}


def main(arguments: list[str] | None = None) -> None:
    """Makes what is missing and prints where the data lies."""
    asked = entry_flags(PrepareArguments, arguments, "prepare.py", __doc__)
    refusing(refuse_bad_values, asked)
    if asked.dataset is not None:
        try:
            refusing(prepare_dataset, asked)
        except KeyboardInterrupt:
            print("interrupted; the same command continues", flush=True)
            raise SystemExit(INTERRUPTED) from None
        return
    if asked.convert is not None:
        refusing(convert_folder, Path(asked.convert).expanduser(), asked, None)
        return
    run = refusing(resolve, HyperArguments(task_name=asked.task_name), asked.set)
    if asked.action_tokenizer is not None:
        refusing(train_action_tokenizer, run, asked)
        return
    if asked.export is not None:
        refusing(export_task, run, asked)
        return
    if run.dataset is not None and hasattr(run.dataset.module, "make"):
        folder = refusing(make_data, run, asked)
    else:
        folder = refusing(record_episodes, run, asked.num_episodes, asked.seed, asked.jitter, asked.num_workers)
    print(f"data of {run.task} in {folder}")


def make_data(run: RunConfig, asked: PrepareArguments) -> Path:
    """Make the data of a task from `--source`, for kinds of data that can (`make(config, run, source)`)."""
    refuse_useless(asked, dict.fromkeys(("num_episodes", "seed", "jitter"), f"task {run.task} has no simulation"))
    return run.dataset.module.make(run.dataset.config, run, asked.source)


def refuse_bad_values(asked: PrepareArguments) -> None:
    """Raise ConfigError for a flag without a value, as of an unset variable of a script, or that does not matter."""
    for name in sorted(asked.given):
        value = getattr(asked, name)
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"`--{name}` is empty; give it a value, or leave it out")
    what = next((name for name in FLAGS if name in asked.given), "task_name")
    for name in sorted(asked.given - {what, *FLAGS[what]}):
        needed = " or ".join(f"--{flag}" for flag, names in FLAGS.items() if name in names)
        goes_with = f"it goes with {needed}, not with --{what}" if needed else f"--{what} is given"
        refuse_useless(asked, {name: f"{goes_with}; leave one of them out"})
    if what in ("convert", "export", "action_tokenizer") and asked.out is None:
        raise ConfigError("name what to write: --out DIR of a conversion, --out FILE of action tokens")


def export_task(run: RunConfig, asked: PrepareArguments) -> None:
    """Write the demonstrations of a task, recorded first if there are none, as a LeRobot data set."""
    run = with_prepared_data(run)
    path = getattr(run.dataset.config, "path", None) if run.dataset is not None else None
    if not isinstance(path, str) or run.dataset.name != "demonstrations":
        raise ConfigError(f"`--export`: task `{run.task}` has no single folder of demonstrations; use --convert DIR")
    convert_folder(Path(path).expanduser(), asked, run)


def train_action_tokenizer(run: RunConfig, asked: PrepareArguments) -> None:
    """Learn FAST from the chunks of the task's training episodes, recorded first if there are none.

    Raises:
        ValueError: the flag is malformed, the data has no actions or needs more tokens; nothing is written.
    """
    word = re.fullmatch(r"fast:(\d{1,6})(?::(\d+(?:\.\d+)?))?", asked.action_tokenizer)
    if word is None:
        raise ConfigError(f"`--action_tokenizer {asked.action_tokenizer}`: write fast:N or fast:N:SCALE, as fast:1024")
    if run.dataset is None or run.dataset.name != "demonstrations":
        raise ConfigError(f"`--action_tokenizer`: task `{run.task}` has no demonstrations; name one that has")
    out = check_output("out", asked.out)
    from data.demonstrations import action_chunks
    from models.vla.action_tokens import SCALE, FastTokens, train_fast

    run = with_prepared_data(run)
    chunks, normalization = action_chunks(run.dataset.config, run)
    settings = train_fast(chunks, int(word[1]), float(word[2] or SCALE)) | {"normalization": normalization}
    atomic.write_json(out, settings)
    codec = FastTokens(settings, *chunks.shape[1:])
    error = abs(codec.decode(rows := codec.encode(chunks))[0] - chunks).max()
    shape = f"a chunk of {chunks.shape[1]} x {chunks.shape[2]} has {sum(map(len, rows)) / len(rows):.1f} of them"
    print(f"{len(codec.numbers)} tokens in {out}: {shape}; actions are off by at most {error:.3g}", flush=True)


def convert_folder(source: Path, asked: PrepareArguments, run: RunConfig | None) -> None:
    """Convert a folder of demonstrations, of a task if `run` is given."""
    from data.demonstrations.lerobot import is_lerobot, require_pyarrow

    if is_lerobot(source, "auto"):
        if run is not None:
            raise ConfigError(f"`--export lerobot`: {source} is a LeRobot data set already")
        of_hdf5 = ("fps", "instruction", "vcodec", "crf")
        refuse_useless(asked, dict.fromkeys(of_hdf5, f"{source} is a LeRobot data set, which becomes HDF5"))
    require_pyarrow()
    from data.demonstrations.lerobot.convert import Encoding, Settings, convert

    settings = Settings(asked.fps, asked.instruction or source.name, Encoding(asked.vcodec, asked.crf))
    if run is not None:
        settings = dataclasses.replace(
            settings,
            fps=asked.fps or (run.env and getattr(run.env.module, "CONTROL_HZ", None)),
            instruction=asked.instruction or run.task,
            robot_type=run.env and run.env.name,
            config=run.dataset.config,
        )
    print(convert(source, Path(asked.out).expanduser().absolute(), settings), flush=True)


def prepare_dataset(asked: PrepareArguments) -> None:
    """A data set of the given name: a text's tokens, or what a kind of data makes by that name.

    Raises:
        ValueError: not a name, or nothing to make it from.
    """
    name = asked.dataset
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"`--dataset {name}` is not a plain name; --out gives the folder")
    ready = ready_names()
    kind = ready.get(name, "text")
    cache_dir = resolve(HyperArguments()).cache_dir
    folder = Path(os.path.expanduser(asked.out)).absolute() if asked.out else cache_dir / "datasets" / name
    if kind != "text" and asked.text is None:
        refuse_useless(asked, dict.fromkeys(OF_A_TEXT, f"{name} is made from something of its own"))
        component_module("dataset", kind).prepare(name, folder)
        print(f"{name} is in {folder}")
        return
    prepare_text(asked, name if kind == "text" and name in ready else None, folder, cache_dir, sorted(ready))


def ready_names() -> dict[str, str]:
    """Data sets that are known by name -> the kind of data (a module of data/) that makes them."""
    found = {}
    for kind in shipped("dataset"):
        found |= dict.fromkeys(getattr(component_module("dataset", kind), "READY", ()), kind)
    return found


def prepare_text(asked: PrepareArguments, ready: str | None, folder: Path, cache_dir: Path, names: list[str]) -> None:
    """Tokenizes a text into `folder`; `ready` has a text and a tokenizer of its own.

    Raises:
        ValueError: the text, the tokenizer or the folder cannot be used, or is not named; one line.
    """
    from data.text.builtin_datasets import settings_of
    from data.text.preparing import PreparationSettings, describe, is_prepared, plain, prepare

    keys = [field.name for field in dataclasses.fields(PreparationSettings)]
    given = {key: getattr(asked, key) for key in keys if key in asked.given}
    if {"val_text", "val_fraction"} <= given.keys():
        raise ConfigError("`--val_text` is the whole validation split; leave --val_fraction out")
    if asked.text is None and not asked.overwrite and is_prepared(folder, plain(given)):
        print(f"{folder} is already prepared: {describe(folder)}")
        return
    if ready is None:
        for key, remedy in (("text", "FILE, a folder or a dataset of the hub"), ("tokenizer", "char, bytes, bpe:N …")):
            if key not in given:
                known = did_you_mean(asked.dataset, names, f"; known by name are {quoted(names)}")
                known = known if key == "text" else ""
                raise ConfigError(f"`--dataset {asked.dataset}` needs --{key}: {remedy}{known}")
        settings = PreparationSettings(**given)
    else:
        settings = settings_of(ready, cache_dir, given)
    prepare(folder, settings, asked.num_workers, asked.overwrite)


def with_prepared_data(run: RunConfig) -> RunConfig:
    """The run with `dataset.path` filled in; data that can be made is made on first use.

    A task records its own, and an interrupted recording is completed to the number of episodes it was begun for; a kind
    of data with ready names (`prepared`) makes those that are missing.
    """
    config = run.dataset.config
    if hasattr(run.dataset.module, "prepared"):
        config = run.dataset.module.prepared(config, run)
        run = dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, config=config))
    if run.env is None or getattr(config, "path", "") is not None:
        return run
    folder = recording_folder(run)
    from sim import record

    found = record.recorded(run.env.config, folder)
    if found is None:
        print(f"no data for {run.task} yet: recording {DEFAULT_EPISODES} episodes into {folder}", flush=True)
        record_episodes(run, DEFAULT_EPISODES, seed=0, jitter=DEFAULT_JITTER)
    elif found.kept < found.wanted:
        place = f"at {found.kept} of {found.wanted} episodes"
        print(f"the recording in {folder} was interrupted {place}: going on", flush=True)
        record_episodes(run, found.wanted, found.seed, found.jitter)
    config = dataclasses.replace(config, path=str(folder))
    return dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, config=config))


def build_data(run: RunConfig) -> Any:
    """The run's `Bundle`. A module of one's own may return any object with the attributes that it has."""
    from data.bundle import Bundle

    module, config = run.dataset.module, run.dataset.config
    path = module.encoder_path(config) if hasattr(module, "encoder_path") else None
    bundle = module.build(config, run) if path is None else module.build(config, run, encoder=load_encoder(path))
    if isinstance(bundle, Bundle):
        return bundle
    given = {item.name: getattr(bundle, item.name, None) for item in dataclasses.fields(Bundle)}
    try:
        return Bundle(**{name: value for name, value in given.items() if value is not None})
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"dataset `{run.dataset.name}`: `build` returns no data.bundle.Bundle ({error})") from None


def start_sweep(*command: Any) -> int:
    """Run a sweep (`train.py -m`), which asks the trainer and the data about metrics; returns the exit code."""
    from loader.sweep.run import sweep
    from trainer.callbacks.metric_names import direction_of, find_metric
    from trainer.preemption import Signals

    def direction(name: str, run: RunConfig) -> str | None:
        if (known := direction_of(name)) is not None:
            return known
        return direction_of(name, refusing(build_data, refusing(with_prepared_data, run)).directions())

    return sweep(*command, find=find_metric, direction=direction, stop=Signals())


def load_encoder(folder: str) -> Any:
    """The trained network in `folder` that turns the values of a data set into ids (`encoder_path` of its module)."""
    name = str(read_json(Path(folder) / "config.json").get("model_type"))
    if name not in shipped("model"):
        raise ValueError(f"{folder}: config.json names the model {name}, which is none of Keel's")
    return component_module("model", name).load(folder)


def build_loss(run: RunConfig, bundle: Any) -> Any:
    """The loss that replaces the model's own, or None; it may take weights from the data's statistics (`fit`).

    Raises:
        ValueError: the loss does not fit the labels: of exclusive classes for independent ones, or the like.
    """
    if run.loss is None:
        return None
    loss, of_data = run.loss.module.build(run.loss.config), bundle.dims.get("problem_type")
    of_loss = getattr(loss, "problem_type", None)
    if None not in (of_loss, of_data) and of_loss != of_data:
        from models.losses import LOSSES_OF

        labels, remedy = LOSSES_OF.get(of_data, (f"the problem type {of_data}", "another"))
        place = f"`loss.name: {run.loss.name}`{run.place('loss.name')}"
        raise ValueError(f"{place} does not fit the data, whose samples have {labels}; take {remedy}")
    if hasattr(loss, "fit"):
        loss.fit(bundle.statistics | {"problem_type": of_data})
    return loss


def recording_folder(run: RunConfig) -> Path:
    """Where a task's own recording lies: $KEEL_HOME/datasets/TASK."""
    return run.cache_dir / "datasets" / run.task


def record_episodes(
    run: RunConfig, num_episodes: int, seed: int, jitter: float = DEFAULT_JITTER, num_workers: int | None = None
) -> Path:
    """Records the episodes that the task's folder lacks.

    Raises:
        ConfigError: the task has no environment to record in, or names a path of its own.
    """
    if run.env is None:
        raise ConfigError(f"task `{run.hyper.task_name}` has no `env` to record demonstrations in")
    if run.dataset is not None and getattr(run.dataset.config, "path", None) is not None:
        raise ConfigError(f"`dataset.path`{run.place('dataset.path')} names data of its own; leave it out to record")
    folder = recording_folder(run)
    from sim import record

    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".recording.lock"):  # a second recorder waits, then finds the episodes there
        report = record.record(run.env.config, folder, num_episodes, seed, num_workers, jitter)
    kept = f"{report.kept} in the folder, {report.discarded} failed attempts discarded"
    print(f"recorded {report.recorded} episodes in {report.seconds:.0f} s ({kept})", flush=True)
    return folder


if __name__ == "__main__":
    command_line(main)
