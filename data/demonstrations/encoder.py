"""Encode observations as model inputs, in the same way in training and on the robot.

Shapes: K images (cameras x history), h and w in training, S state and A action dimensions.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from data.demonstrations.images import FrameFit
from data.statistics import Normalizer


@dataclass(eq=False)
class ObservationEncoder:
    """Encodes observations from the run's configuration and its saved statistics alone, without the demonstrations.

    An observation is a flat dict keyed by HDF5 path, one step of what an episode file stacks.
    """

    state: Normalizer
    action: Normalizer
    state_keys: list[str]
    image_keys: list[str]
    fit: FrameFit | None
    history: int

    def __post_init__(self):
        self.reset()

    @classmethod
    def from_files(cls, config, process, statistics: dict) -> "ObservationEncoder":
        """Build it from the dataset's Config, the process parameters and the content of `statistics.json`."""
        place = "statistics.json"
        damaged = f"{place} is damaged: %s missing; restore the file from the training run, or train again"
        for part in ("state", "action", "observation"):
            if not isinstance(statistics, dict) or part not in statistics:
                raise ValueError(damaged % f"`{part}`")
        saved = statistics["observation"]
        required = {"state_keys", "image_keys", "image_height", "image_width", "image_aspect_ratio", "history"}
        if not isinstance(saved, dict) or not required <= saved.keys():
            raise ValueError(damaged % "part of `observation`")
        state = Normalizer.from_dict(statistics["state"], f"`state` in {place}")
        action = Normalizer.from_dict(statistics["action"], f"`action` in {place}")
        for signal, normalizer in (("state", state), ("action", action)):
            refuse_change(f"dataset.normalization.{signal}", config.normalization[signal], normalizer.kind)
        fit = None
        if saved["image_keys"]:
            refuse_change("is_multimodal", process.is_multimodal, True)
            refuse_change("history_images_length", process.history_images_length, saved["history"])
            refuse_change("image_aspect_ratio", process.image_aspect_ratio, saved["image_aspect_ratio"])
            fit = FrameFit(saved["image_aspect_ratio"], saved["image_height"], saved["image_width"])
        return cls(state, action, saved["state_keys"], saved["image_keys"], fit, saved["history"])

    def reset(self) -> None:
        """Clear the history of frames at the beginning of an episode."""
        self.frames = {key: deque(maxlen=self.history) for key in self.image_keys}

    def encode(self, observation: dict) -> dict:
        """Encode an observation as state (1, S) float32 and, for a model with images, images (1, K, 3, h, w) uint8."""
        import torch

        values = [np.asarray(self.entry(observation, key), dtype=np.float64).reshape(-1) for key in self.state_keys]
        state = np.concatenate(values)
        if state.shape != self.state.shift.shape:
            raise ValueError(
                f"the observation's {' + '.join(self.state_keys)} has {len(state)} dimensions but the "
                f"model was trained on {len(self.state.shift)}; use the environment it was trained for"
            )
        inputs = {"state": torch.from_numpy(self.state.encode(state)[None])}
        if self.fit is not None:
            inputs["images"] = torch.from_numpy(self.add_frames(observation)[None])
        return inputs

    def add_frames(self, observation: dict) -> np.ndarray:
        """Add this step's frames to the history and return it: (K, 3, h, w), camera-major, oldest first.

        At the beginning of an episode the first frame is repeated.
        """
        for key in self.image_keys:
            frame = self.fit(self.entry(observation, key))
            frames = self.frames[key]
            frames.extend([frame] * (1 if frames else self.history))
        return np.stack([frame for key in self.image_keys for frame in self.frames[key]])

    @staticmethod
    def entry(observation: dict, key: str):
        if key not in observation:
            raise ValueError(
                f"the observation has no `{key}`, which the model was trained on; it has "
                f"{', '.join(sorted(observation))}: use an environment that provides it"
            )
        return observation[key]

    def decode_action(self, normalised: np.ndarray) -> np.ndarray:
        """Normalised (…, A) -> raw (…, A) float64."""
        return self.action.decode(normalised)


def refuse_change(key: str, now: object, trained: object) -> None:
    if now != trained:
        raise ValueError(f"{key} is {now} but the model was trained with {trained}; use the configuration of the run")
