"""Configuration keys of demonstrations, and the episode files of a folder; imports only the standard library."""

import fnmatch
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.demonstrations import lerobot
from data.files import files_below
from data.hub import is_hub_id
from storage.config_keys import HARMLESS, IMPOSSIBLE, key

NORMALIZATION_KINDS = Literal["zscore", "min_max", "percentiles", "identity"]
SUFFIXES = (".hdf5", ".h5")
PROMPT = "{instruction}\n"
OF_TEXT = ("tokenizer", "prompt", "max_prompt_tokens", "max_target_tokens", "phrasings")  # for language models alone


@dataclass
class Config:
    """YAML section `dataset` with `name: demonstrations`."""

    path: str | list[str] | None = key(
        None,
        "folder of episode files, searched recursively for *.hdf5 and *.h5, a LeRobot data set (a folder, or with "
        "layout: lerobot its id on the hub), or a list of these to mix; unset only until the task's data is recorded",
        on_resume=HARMLESS,
        is_path=True,
    )
    exclude: list[str] | None = key(
        None,
        "episode files that are left out, by their path below the folder or a pattern of it, such as [episode_3.hdf5, "
        "failed/*]; of a LeRobot data set, episode_3",
    )
    weights: list[float] | None = key(
        None,
        "how often each folder of `path` is drawn, in any unit; unset draws every step (or, with "
        "episode_first, every episode) equally often",
    )
    layout: Literal["auto", "act", "il_studio", "lerobot"] = key(
        "auto",
        "the files' layout: `act` /action, /observations/qpos, /observations/images; `il_studio` "
        "/action_joint, /observations/state_joint, /observations/image; `lerobot` a LeRobot data set, v2 or v3; "
        "`auto` detects it from meta/info.json or the first file",
    )
    control: Literal["joint", "ee"] = key(
        "joint", "which actions and states of the IL-Studio layout: joint positions or end-effector poses"
    )
    state_keys: list[str] | None = key(
        None,
        "HDF5 paths or LeRobot features concatenated to the state, such as [observations/qpos, "
        "observations/env_state]; unset: those of the layout",
        on_resume=IMPOSSIBLE,
    )
    action_key: str | None = key(
        None, "HDF5 path or LeRobot feature of the actions; unset: that of the layout", on_resume=IMPOSSIBLE
    )
    cameras: list[str] | None = key(
        None, "cameras, in the model's order; unset: those that all episodes have; []: none", on_resume=IMPOSSIBLE
    )
    rename: dict[str, str] = key(
        {},
        "LeRobot feature -> the name that it has in all other keys and for the policy, such as "
        "{observation.images.laptop: observation.images.top}",
        on_resume=IMPOSSIBLE,
    )
    timestamp_tolerance_s: float = key(
        1e-4, "most that a frame of a LeRobot data set may be away from its time, in seconds", gt=0
    )
    missing_cameras: Literal["error", "mask"] = key(
        "error",
        "a camera that some episodes or folders lack: error; mask: a black image there, which the policy ignores "
        "(image_mask in the batch); cameras: unset then means every camera of any episode",
        on_resume=IMPOSSIBLE,
    )
    image_size: list[int] | None = key(
        None,
        "[height, width] of images in training, in pixels; unset: a square of the frame's shorter side (of "
        "its longer side with image_aspect_ratio pad)",
        on_resume=IMPOSSIBLE,
    )
    chunk_size: int = key(100, "actions per chunk, in control steps", ge=1, on_resume=IMPOSSIBLE)
    n_obs_steps: int = key(
        1,
        "states in an observation: the current one after those before it, an episode's first repeated; images: as many "
        "of each camera, or history_images_length if that is more",
        ge=1,
        on_resume=IMPOSSIBLE,
    )
    past_actions: int = key(
        0,
        "actions of earlier steps at the beginning of a chunk, predicted but not executed; in Diffusion Policy "
        "n_obs_steps - 1",
        ge=0,
        on_resume=IMPOSSIBLE,
    )
    eval_fraction: float = key(
        0.0, "share of each folder's episodes for evaluation, at least one episode if it is not 0", ge=0, lt=1
    )
    split_seed: int = key(
        0,
        "seed that chooses the evaluation episodes; not the run's seed, so that runs stay comparable",
        ge=0,
    )
    max_episodes: int | None = key(None, "use only the first so many episodes of each folder", ge=1)
    instruction_words: bool = key(
        False,
        "the words of the instruction are an input of the policy, as the set of those that training has; for policies "
        "without a language model",
        on_resume=IMPOSSIBLE,
    )
    tokenizer: str | None = key(
        None,
        "folder or hub id of the tokenizer, for policies with a language model; unset: the one of model_name_or_path",
        on_resume=IMPOSSIBLE,
        is_path=True,
    )
    prompt: str = key(
        PROMPT,
        "the text that a policy with a language model reads: {instruction}, and perhaps {state}, the normalised state "
        "as numbers 0 to 255",
        on_resume=IMPOSSIBLE,
    )
    max_prompt_tokens: int = key(64, "longest prompt; a longer one loses its end", ge=1, on_resume=IMPOSSIBLE)
    max_target_tokens: int = key(
        128, "longest reasoning, with the token that ends it; a longer one loses its end", ge=2, on_resume=IMPOSSIBLE
    )
    phrasings: dict[str, list[str]] = key(
        {},
        "instruction -> other wordings of it: each training step has one of all these, evaluation the instruction "
        "itself; for policies with a language model",
    )
    samples_per_epoch: int | None = key(None, "samples in an epoch; unset: the number of training steps", ge=1)
    normalization: dict[Literal["state", "action"], NORMALIZATION_KINDS] = key(
        {"state": "zscore", "action": "zscore"},
        "kind for state and action: zscore; min_max (to [-1, 1]); percentiles (1 % and 99 % to [-1, 1], not "
        "clipped); identity",
    )
    normalization_mask: dict[Literal["state", "action"], list[bool]] = key(
        {}, "per dimension of state and action: true normalises, false leaves the value; unset: all true"
    )
    minimum_std: float = key(
        0.01, "floor of the standard deviation under zscore, in the signal's unit: keeps idle joints' noise small", gt=0
    )

    def __post_init__(self):
        self.phrasings = {text.strip(): others for text, others in self.phrasings.items()}
        self.normalization = {"state": "zscore", "action": "zscore", **self.normalization}
        paths = self.paths()
        if len({*paths}) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"dataset.path names {twice} twice; draw it more often with dataset.weights instead")
        if self.weights is not None and len(self.weights) != len(paths):
            counts = f"{len(self.weights)} entries but dataset.path names {len(paths)} folders"
            raise ValueError(f"dataset.weights has {counts}; give one weight for each")
        if self.weights is not None and min(self.weights) <= 0:
            raise ValueError(f"dataset.weights {self.weights} must be positive; leave the folder out of dataset.path")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"dataset.image_size {self.image_size} is no [height, width] in px, such as [240, 320]")
        if self.past_actions >= self.chunk_size:
            given = f"dataset.past_actions: {self.past_actions}"
            raise ValueError(f"{given} leaves no action of dataset.chunk_size: {self.chunk_size} to execute; lower it")
        if self.state_keys == []:
            raise ValueError("dataset.state_keys is empty; name at least one HDF5 path, or leave the key out")
        self.check_prompt()

    def check_prompt(self) -> None:
        """Raise ValueError for a prompt that lacks the instruction, or has what cannot be filled in."""
        names = re.findall(r"\{(\w+)\}", self.prompt)
        if other := [name for name in names if name not in ("instruction", "state")]:
            raise ValueError(f"dataset.prompt has {{{other[0]}}}, which is neither {{instruction}} nor {{state}}")
        if "instruction" not in names:
            raise ValueError(f"dataset.prompt `{self.prompt}` lacks {{instruction}}, which tells the policy what to do")
        kind = self.normalization["state"]
        if "state" in names and kind not in ("min_max", "percentiles"):
            needed = "needs dataset.normalization.state min_max or percentiles, which cover [-1, 1]"
            raise ValueError(f"dataset.prompt has {{state}}, which {needed}, not {kind}")

    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path or []


def reads_tokens(run) -> bool:
    """Whether the run's model has a vocabulary."""
    return hasattr(getattr(getattr(run, "model", None), "config", None), "vocab_size")


def clips_actions(run) -> bool:
    """Whether the run's model clips what it predicts to [-1, 1]."""
    config = getattr(getattr(run, "model", None), "config", None)
    return getattr(config, "clip_sample", False) and getattr(config, "head", "diffusion") == "diffusion"


def has_bins(run) -> bool:
    """Whether the run's model predicts bins of [-1, 1]."""
    config = getattr(getattr(run, "model", None), "config", None)
    return getattr(config, "head", None) == "tokens" and config.action_tokenizer == "bins"


def included(folder: Path, exclude: list[str] | None) -> list[Path]:
    """The episode files of a folder that no pattern of `dataset.exclude` matches."""
    files = {str(file.relative_to(folder)): file for file in episode_files(folder)}
    return [file for name, file in files.items() if not any(fnmatch.fnmatchcase(name, p) for p in exclude or ())]


def unmatched(config: Config) -> list[str]:
    """The patterns of `dataset.exclude` that match no episode; none if a data set is not downloaded yet."""
    folders = [Path(path).expanduser() for path in config.paths()] if config.exclude else []
    if not all(folder.is_dir() for folder in folders):
        return []
    names = [name for folder in folders for name in episode_names(folder, config.layout)]
    return [pattern for pattern in config.exclude or () if not fnmatch.filter(names, pattern)]


def episode_names(folder: Path, layout: str) -> list[str]:
    """What `dataset.exclude` matches: paths of episode files below the folder, or names of a LeRobot data set."""
    if lerobot.is_lerobot(folder, layout):
        return lerobot.episode_names(folder)
    return [str(file.relative_to(folder)) for file in episode_files(folder)]


def folder_problem(path: str, layout: str) -> str | None:
    """Why a folder cannot be used, or None. It is never created: a mistyped path must not look like an empty folder."""
    folder = Path(path).expanduser()
    if not folder.exists():
        if layout == "lerobot" and is_hub_id(path):
            return None
        hub = ", set dataset.layout: lerobot for a data set of the hub" if is_hub_id(path) else ""
        return (
            f"dataset.path: {path} does not exist; correct the path{hub}, or record the task's episodes with "
            f"`python prepare.py --task_name …`"
        )
    if not folder.is_dir():
        return f"dataset.path: {path} is a file, not a folder of episodes; name its folder"
    try:
        names = episode_names(folder, layout)
    except ValueError as error:
        return f"dataset.path: {error}"
    if not names:
        return f"dataset.path: {path} holds no episode (*.hdf5, *.h5) and no {lerobot.INFO} of LeRobot; correct it"
    return None


def episode_files(folder: Path) -> list[Path]:
    """The episode files below a folder (see `data.files`), episode_2 before episode_10.

    Raises:
        ValueError: A folder cannot be read, or the target of a link does not exist.
    """

    def natural(file: Path) -> list:
        parts = re.split(r"(\d+)", str(file.relative_to(folder)))
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]

    files = files_below(folder)
    for file in files:
        if not file.exists() and (file.name.endswith(SUFFIXES) or not file.suffix):
            target = os.path.realpath(file)
            raise ValueError(f"{file} is a link to {target}, which does not exist; restore it, or move the link away")
    return sorted((file for file in files if file.name.endswith(SUFFIXES)), key=natural)
