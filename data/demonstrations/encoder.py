"""Encode observations as model inputs, in the same way in training and on the robot.

Shapes: K images (cameras x history), h and w in training, S state and A action dimensions.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from data.demonstrations.images import FrameFit
from data.demonstrations.language import PromptTokenizer, last_other, subtask_in, with_previous
from data.statistics import Normalizer

WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> set[str]:
    """The words of a text in lower case, without punctuation."""
    return set(WORD.findall(text.lower()))


def vocabulary_of(texts: Iterable[str]) -> list[str]:
    """All words of some texts, sorted."""
    return sorted(set().union(*map(words_of, texts)))


def encode_words(text: str, vocabulary: list[str]) -> np.ndarray:
    """(V,) float32: 1 for each word of the vocabulary that the text has; other words are left out."""
    present = words_of(text)
    return np.array([word in present for word in vocabulary], dtype=np.float32)


# What a model's statistics.json may lack, and the value that it was then trained with.
ADDED = {"vocabulary": None, "n_obs_steps": 1, "past_actions": 0}


def image_history(config, process) -> int:
    """Frames of each camera in an observation."""
    return max(process.history_images_length, config.n_obs_steps)


@dataclass(eq=False)
class ObservationEncoder:
    """Encodes observations from the run's configuration and its saved statistics alone, without the demonstrations.

    An observation is one step of what an episode file stacks: a dict keyed by HDF5 path, with or without a slash in
    front, or nested as the file's groups are.
    """

    state: Normalizer
    action: Normalizer
    state_keys: list[str]
    image_keys: list[str]
    fit: FrameFit | None
    history: int
    vocabulary: list[str] | None = None  # of `dataset.instruction_words`
    n_obs_steps: int = 1
    past_actions: int = 0
    masks: bool = False  # images may be missing
    prompts: PromptTokenizer | None = None  # of policies with a language model

    def __post_init__(self):
        self.reset()

    @classmethod
    def from_files(cls, config, process, statistics: dict, prompts: PromptTokenizer | None = None) -> Self:
        """Build it from the dataset's Config, the process parameters and the content of `statistics.json`."""
        place = "statistics.json"
        try:
            saved = statistics["observation"]
            fit = FrameFit(saved["image_aspect_ratio"], saved["image_height"], saved["image_width"])
            state_keys, image_keys, history = (saved[key] for key in ("state_keys", "image_keys", "history"))
            state, action = (
                Normalizer.from_dict(statistics[name], f"`{name}` in {place}") for name in ("state", "action")
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{place} is damaged: it lacks {error}; restore it from the run, or train again") from None
        if prompts is None and saved.get("language") is not None:
            raise ValueError(f"`language` in {place} is damaged; restore it from the run, or train again")
        for signal, normalizer in (("state", state), ("action", action)):
            refuse_change(f"dataset.normalization.{signal}", config.normalization[signal], normalizer.kind)
        vocabulary, steps, past = (saved.get(key, old) for key, old in ADDED.items())
        refuse_change("dataset.n_obs_steps", config.n_obs_steps, steps)
        if image_keys:
            refuse_change("is_multimodal", process.is_multimodal, True)
            refuse_change("history_images_length", image_history(config, process), history)
            refuse_change("image_aspect_ratio", process.image_aspect_ratio, fit.mode)
        refuse_change("dataset.instruction_words", config.instruction_words, vocabulary is not None)
        refuse_change("dataset.past_actions", config.past_actions, past)
        for name in ("prompt", "max_prompt_tokens", "max_target_tokens") if prompts is not None else ():
            refuse_change(f"dataset.{name}", getattr(config, name), getattr(prompts, name))
        fit, masks = fit if image_keys else None, saved.get("masks", False)
        return cls(state, action, state_keys, image_keys, fit, history, vocabulary, steps, past, masks, prompts)

    @property
    def text_keys(self) -> tuple[str, ...]:
        """Entries of an observation that are texts."""
        if self.prompts is None:
            return () if self.vocabulary is None else ("instruction",)
        given = self.prompts.use_prev_subtask and not self.prompts.feeds_back
        return ("instruction", "subtask") if given else ("instruction",)

    def reset(self) -> None:
        """Forget earlier states, frames and subtasks at the beginning of an episode."""
        self.states = deque(maxlen=self.n_obs_steps)
        self.frames = {key: deque(maxlen=self.history) for key in self.image_keys}
        self.subtasks: list[str] = []  # so far, newest first

    def encode(self, observation: dict) -> dict:
        """Encode an observation: state (1, S) float32; if the model has them, images (1, K, 3, h, w), words (1, V),
        prompt_ids and prompt_mask (1, L).

        The state has the last `n_obs_steps` ones. With `masks`, cameras may be missing: image_mask (1, K) says where.

        Raises:
            ValueError: entries are missing, or the state is of the wrong size or not finite.
        """
        import torch

        observation = dict(entries(observation))
        needed = (*self.state_keys, *(() if self.masks else self.image_keys), *self.text_keys)
        if missing := [key for key in needed if key not in observation]:
            raise ValueError(
                f"the observation has no {', '.join(f'`{key}`' for key in missing)}, which the model was trained on; "
                f"it has {', '.join(sorted(observation)) or 'nothing'}; give every entry of a recorded step"
            )
        # All is checked before anything is remembered: an observation that is refused leaves no trace.
        state, frames = self.state_of(observation), self.frames_of(observation)
        texts = {key: text_of(observation, key) for key in self.text_keys}
        self.states.extend([self.state.encode(state)] * (1 if self.states else self.n_obs_steps))
        inputs = {"state": torch.from_numpy(np.concatenate(self.states)[None])}
        if self.fit is not None:
            images, mask = self.add_frames(frames)
            inputs["images"] = torch.from_numpy(images[None])
            if self.masks:
                inputs["image_mask"] = torch.from_numpy(mask[None])
        if self.vocabulary is not None:
            inputs["words"] = torch.from_numpy(encode_words(texts["instruction"], self.vocabulary)[None])
        if self.prompts is not None:
            inputs |= self.prompts.live(self.instruction(texts), inputs["state"][0].numpy())
        return inputs

    def state_of(self, observation: dict) -> np.ndarray:
        """This step's state (S,) as it was measured; ValueError if it is of the wrong size or not finite."""
        values = [np.asarray(observation[key], dtype=np.float64).reshape(-1) for key in self.state_keys]
        for key, value in zip(self.state_keys, values, strict=True):
            if not np.isfinite(value).all():
                wrong = int(np.argmin(np.isfinite(value)))
                raise ValueError(f"the observation's {key} is not finite: dimension {wrong} is {value[wrong]}")
        state = np.concatenate(values)
        if state.shape != self.state.shift.shape:
            raise ValueError(
                f"the observation's {' + '.join(self.state_keys)} has {len(state)} dimensions but the "
                f"model was trained on {len(self.state.shift)}; give the state as it was recorded"
            )
        return state

    def instruction(self, texts: dict[str, str]) -> str:
        """The instruction of an observation, with the previous subtask where the model was trained with it."""
        if "subtask" in texts:
            self.add_subtask(texts["subtask"])
        previous = last_other(self.subtasks, self.subtasks[0]) if self.subtasks else None
        return with_previous(texts["instruction"], previous).strip()

    def add_subtask(self, subtask: str) -> None:
        """Make it the current subtask; the one before becomes the previous one."""
        self.subtasks = [subtask, *(each for each in self.subtasks if each != subtask)]

    @property
    def reads_back(self) -> bool:
        """Whether the next observation is encoded with what the policy has written for this one."""
        return self.prompts is not None and self.prompts.feeds_back

    def read_back(self, target_ids: Any) -> None:
        """Take the subtask from the text (1, T) that the policy has written, if later prompts have it."""
        if self.reads_back:
            (text,) = self.prompts.decode(target_ids)
            self.add_subtask(subtask_in(text))

    def frames_of(self, observation: dict) -> dict[str, tuple[np.ndarray, bool]]:
        """This step's frame (3, h, w) of each camera, and whether it exists; missing ones are black."""
        black = np.zeros((3, self.fit.height, self.fit.width), np.uint8) if self.fit is not None else None
        return {
            key: (self.fit(observation[key]), True) if key in observation else (black, False) for key in self.image_keys
        }

    def add_frames(self, frames: dict[str, tuple[np.ndarray, bool]]) -> tuple[np.ndarray, np.ndarray]:
        """Add this step's frames to the history and return it: (K, 3, h, w), camera-major, oldest first.

        At the beginning of an episode the first frame is repeated. The second array (K,) is false for frames that are
        missing.
        """
        for key, frame in frames.items():
            self.frames[key].extend([frame] * (1 if self.frames[key] else self.history))
        images, mask = zip(*(entry for key in self.image_keys for entry in self.frames[key]), strict=True)
        return np.stack(images), np.array(mask)

    def action_normalization(self) -> dict:
        """What a tokenizer of actions depends on: the kind of normalization, and which dimensions have it."""
        return {"kind": self.action.kind, "mask": self.action.mask.tolist()}

    def decode_action(self, normalised: np.ndarray) -> np.ndarray:
        """Normalised (…, A) -> raw (…, A) float64."""
        return self.action.decode(normalised)


def entries(observation: Mapping[str, object], group: str = "") -> Iterator[tuple[str, object]]:
    """HDF5 path, without a slash in front, and value of each entry of a flat or nested observation."""
    for name, value in observation.items():
        path = f"{group}/{name.strip('/')}".strip("/")
        if isinstance(value, Mapping):
            yield from entries(value, path)
        else:
            yield path, value


def text_of(observation: Mapping[str, object], key: str) -> str:
    """A text of an observation, also as HDF5 and NumPy give it: bytes, or an array with a single text.

    Raises:
        ValueError: it is no text.
    """
    value = np.asarray(observation[key])
    text = value.item() if value.size == 1 else None
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeError:
        text = None
    if not isinstance(text, str):
        raise ValueError(f"the observation's {key} is {observation[key]!r}; give one text, in UTF-8")
    return text


def refuse_change(key: str, now: object, trained: object) -> None:
    if now != trained:
        raise ValueError(f"{key} is {now} but the model was trained with {trained}; use the configuration of the run")
