"""Recorded or live observations in, action chunks out, in the units of the demonstrations.

Shapes: T steps of a recording, B observations, C actions a chunk, A action dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from data import processor
from data.demonstrations.config import SUFFIXES
from data.demonstrations.encoder import ObservationEncoder
from data.demonstrations.hdf5 import dataset_at, read, reading
from data.demonstrations.language import PROMPT, saved_prompts
from data.demonstrations.layouts import decoded, read_signal, read_texts
from data.demonstrations.lerobot import INFO, read_info
from data.processor import Item, Source, saved_json


class Processor(ObservationEncoder, processor.Processor):
    """Predicts the chunk that the policy plans at each observation; needs `statistics.json` beside the model.

    An input file is a recording in HDF5 with the state and the cameras that the model was trained on; actions are not
    read. The folder of a LeRobot data set, or its meta/info.json, is an input too. `encode` keeps the history of states
    and images, so observations are encoded in their order.
    """

    SUFFIXES = (*SUFFIXES, Path(INFO).name)
    LISTS = (Path(INFO).name,)
    WHOLE_FILES = True
    SERVES = True

    @classmethod
    def from_pretrained(cls, folder: Path, config: Any, process: Any, flags: None = None) -> Self:
        """See `data.processor`."""
        statistics = saved_json(folder, "statistics.json")
        made = cls.from_files(config, process, statistics, saved_prompts(folder, process, statistics))
        made.config = config
        return made

    def save_pretrained(self, folder: Path) -> None:
        if self.prompts is not None:
            self.prompts.tokenizer.save_pretrained(folder)

    def count(self, source: Source) -> int:
        if source.path.name in self.LISTS:
            return read_info(source.path.parent.parent)["total_frames"]
        with reading(source.path) as root:
            return len(root[self.state_keys[0]])

    def recordings(self, source: Source) -> list[Source]:
        """The episodes of a LeRobot data set, whose `path` is its folder; an HDF5 file is one recording."""
        if source.path is None or source.path.name not in self.LISTS:
            return [source]
        from data.demonstrations.lerobot.scan import Observations

        folder = source.path.parent.parent
        self.lerobot = Observations(folder, self.config, self.state_keys, self.image_keys, self.masks)
        above = source.name.removesuffix(INFO) if source.name.endswith(INFO) else ""
        return [Source(f"{above}{name}", folder) for name in self.lerobot.episodes]

    def read(self, source: Source) -> Iterator[Item]:
        """An item for each step: {HDF5 path or feature: its row}."""
        if source.path is not None and source.path.is_dir():
            self.reset()
            name = Path(source.name).name
            for step, observation in enumerate(self.lerobot.read(name)):
                yield Item(source, f"{source} {name} step {step}", observation)
            return
        with source.local_file() as file, reading(file) as root:
            states = {key: read_signal(root, key) for key in self.state_keys}
            keys = [key for key in self.image_keys if not self.masks or key in root]
            cameras = {key: dataset_at(root, key) for key in keys}
            steps = len(states[self.state_keys[0]])
            for key, rows in {**states, **cameras}.items():
                if len(rows) != steps:
                    raise ValueError(f"{file}: {key} has {len(rows)} steps but {self.state_keys[0]} has {steps}")
            self.reset()
            texts = read_texts(root, steps) if self.text_keys else {}
            for step in range(steps):
                observation = {key: rows[step] for key, rows in states.items()}
                observation |= {key: decoded(frames, read(frames, step), step) for key, frames in cameras.items()}
                observation |= {kind: texts[kind][step] for kind in self.text_keys if kind in texts}
                yield Item(source, f"{source} step {step}", observation)

    def predict(self, model: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Normalised `actions` (B, C, A) from the current step on, and `target_ids` (B, T) of a written reasoning."""
        import torch

        apart = PROMPT if self.prompts is not None else ()
        batch = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0] if name not in apart}
        if self.prompts is not None:
            batch |= self.prompts.joined(inputs)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with torch.no_grad():
            outputs = model(**batch)
        if self.reads_back:
            self.read_back(outputs["target_ids"])
        return {**outputs, "actions": outputs["actions"][:, self.past_actions :]}

    def decode(self, outputs: dict[str, Any]) -> list[Any]:
        """Chunks (C, A) float64 in the demonstrations' units; of a model that wrote a text first, a dict of `actions`
        and `reasoning`.

        Raises:
            ValueError: an action is not finite; no robot should get it.
        """
        chunks = self.decode_action(outputs["actions"].float().cpu().numpy())
        if not np.isfinite(chunks).all():
            raise ValueError("the model's actions are not finite; its weights are damaged, or the state is far outside")
        if "target_ids" not in outputs:
            return list(chunks)
        texts = self.prompts.decode(outputs["target_ids"])
        return [{"actions": chunk, "reasoning": text} for chunk, text in zip(chunks, texts, strict=True)]

    def writer(self, target: Path) -> Recordings:
        return Recordings(target)

    def session(self, model: Any) -> Session:
        return Session(copy.copy(self), model)

    def metadata(self, model: Any) -> dict[str, Any]:
        """Which observations the model reads and what it answers."""
        config = model.config
        size, planned = [config.image_height, config.image_width], config.chunk_size - self.past_actions
        return {
            "state": {"keys": self.state_keys, "size": len(self.state.shift), "history": self.n_obs_steps},
            "images": {"keys": self.image_keys, "size": size, "history": self.history} if self.image_keys else None,
            "texts": [*self.text_keys],
            "actions": {"shape": [planned, config.action_dim], "dtype": "<f8"},
            "n_action_steps": config.n_action_steps or planned,
        }


class Session:
    """The policy at one robot, with an image history of its own; see `data.processor.Processor.session`."""

    def __init__(self, encoder: Processor, model: Any):
        self.encoder, self.model = encoder, model
        self.reset()

    def reset(self) -> None:
        self.encoder.reset()

    def act(self, observation: dict[str, Any]) -> dict[str, Any]:
        """`actions` (C, A), and perhaps `reasoning`, for one step of what an episode file stacks."""
        inputs = self.encoder.encode(observation)
        (record,) = self.encoder.decode(self.encoder.predict(self.model, [inputs]))
        return named(record)


class Recordings:
    """Writes `/FILE/actions` (T, C, A) float64 for each recording, and perhaps T texts `/FILE/reasoning`.

    See `data.processor.Writer`.
    """

    def __init__(self, target: Path):
        self.root = h5py.File(target, "w")
        self.source: Source | None = None
        self.records: list[dict[str, Any]] = []

    def write(self, source: Source, record: Any) -> None:
        if source != self.source:
            self.finish()
            self.source = source
        self.records.append(named(record))

    def drop(self, source: Source) -> None:
        if source == self.source:
            self.source, self.records = None, []

    def finish(self) -> None:
        """Write the recording that is complete."""
        if self.source is not None:
            for name in self.records[0]:
                values = [record[name] for record in self.records]
                # HDF5 has no text with a character 0, which an untrained policy may write.
                texts = [text.replace("\0", "\ufffd") for text in values] if name == "reasoning" else None
                self.root[f"{self.source.name}/{name}"] = np.stack(values) if texts is None else texts
        self.source, self.records = None, []

    def close(self) -> None:
        self.finish()
        self.root.close()


def named(record: Any) -> dict[str, Any]:
    """What `Processor.decode` returned for an input, by name."""
    return record if isinstance(record, dict) else {"actions": record}
