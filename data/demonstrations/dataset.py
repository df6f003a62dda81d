"""Samples and batches of demonstrations.

Shapes: B samples, C actions per chunk, S numbers of an observation's states, A action dimensions, K images (cameras x
history), h and w in training, E episodes.
"""

import numpy as np
import torch

from data.demonstrations.encoder import ObservationEncoder, encode_words
from data.demonstrations.language import prompted_subtasks, with_previous
from data.demonstrations.source import EpisodeSource

SPREAD = 2_654_435_761  # of neighbouring rows over 32 bits (Knuth's multiplicative hash)


class Demonstrations(torch.utils.data.Dataset):
    """Every step of the selected episodes of one or several sources, episode after episode.

    Args:
        chosen: For each source, the numbers of its episodes in this dataset.
        cameras: The names of the model's cameras, in its order.
        texts: Texts in a batch, of "instruction" and "reasoning".
        use_prev_subtask: Append the previous subtask to the instruction, see `prompted_subtasks`.
        phrasings: Instruction -> other wordings; each step has one of all these, always the same.
    """

    def __init__(
        self,
        sources: list[EpisodeSource],
        chosen: list[np.ndarray],
        encoder: ObservationEncoder,
        cameras: list[str],
        chunk_size: int,
        texts: tuple[str, ...],
        use_prev_subtask: bool,
        phrasings: dict[str, list[str]] | None = None,
    ):
        self.sources, self.encoder = sources, encoder
        self.texts, self.phrasings = texts, phrasings or {}
        # (N,) code of the previous subtask at each step of a source
        prompted = sources if use_prev_subtask else []
        self.previous = [prompted_subtasks(source, encoder.prompts, chunk_size) for source in prompted]
        self.chunk = np.arange(chunk_size) - encoder.past_actions
        self.past = np.arange(1 - encoder.n_obs_steps, 1)  # of the states, to the current step
        own = [source.details["cameras"] for source in sources]
        self.views = [[names.index(camera) if camera in names else None for camera in cameras] for names in own]
        present = [present_cameras(source, views) for source, views in zip(sources, self.views, strict=True)]
        self.is_masked = not all(rows.all() for rows in present)
        self.present = np.concatenate([rows[ids] for rows, ids in zip(present, chosen, strict=True)])  # (E, cameras)
        self.source = np.concatenate([np.full(len(ids), s) for s, ids in enumerate(chosen)])  # (E,)
        pairs = list(zip(sources, chosen, strict=True))
        self.starts = np.concatenate([source.arrays["offsets"][ids] for source, ids in pairs])
        lengths = [source.lengths()[ids] for source, ids in pairs]
        self.group_lengths = [group.tolist() for group in lengths]
        self.lengths = np.concatenate(lengths)  # (E,)
        counts = [len(source.lengths()) for source in sources]
        self.ids = np.concatenate([sum(counts[:s]) + ids for s, ids in enumerate(chosen)])  # (E,) over all sources
        self.ends = np.cumsum(self.lengths)  # (E,)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict:
        """One sample: a batch of size one without its batch axis."""
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict:
        """The batch of these samples:

        state (B, S) float32, actions (B, C, A) float32, is_pad (B, C) bool, episode and timestep (B,) int64;
        images (B, K, 3, h, w) uint8 if there are any, image_mask (B, K) bool if some episode of the folders lacks one;
        instruction and reasoning (lists of B texts) if in `texts`; words (B, V) float32 with `instruction_words`; with
        a tokenizer what `PromptTokenizer` makes.
        Steps after an episode's end repeat its last action, those before its beginning the first; is_pad is true for
        them. A state before the beginning is the first.
        """
        index = np.asarray(indices)
        episode = np.searchsorted(self.ends, index, side="right")  # (B,)
        timestep = index - (self.ends - self.lengths)[episode]
        start, source = self.starts[episode], self.source[episode]
        ahead = timestep[:, None] + self.chunk  # (B, C)
        last = self.lengths[episode, None] - 1
        rows = start[:, None] + np.clip(ahead, 0, last)
        observed = start[:, None] + np.maximum(timestep[:, None] + self.past, 0)  # (B, n_obs_steps)
        states = self.encoder.state.encode(self.gather("states", source, observed))
        batch = {
            "state": torch.from_numpy(states.reshape(len(index), -1)),
            "actions": torch.from_numpy(self.encoder.action.encode(self.gather("actions", source, rows))),
            "is_pad": torch.from_numpy((ahead > last) | (ahead < 0)),
            "episode": torch.from_numpy(self.ids[episode]),
            "timestep": torch.from_numpy(timestep),
        }
        if self.encoder.fit is not None:
            batch["images"] = self.images(episode, source, start, timestep)
            if self.is_masked:
                batch["image_mask"] = torch.from_numpy(self.present[episode].repeat(self.encoder.history, axis=1))
        places = list(zip(source.tolist(), start.tolist(), timestep.tolist(), strict=True))
        for kind in self.texts:
            batch[kind] = [self.text(kind, *place) for place in places]
        if self.encoder.vocabulary is not None:
            instructions = [self.text("instruction", *place) for place in places]
            words = {text: encode_words(text, self.encoder.vocabulary) for text in set(instructions)}
            batch["words"] = torch.from_numpy(np.stack([words[text] for text in instructions]))
        if self.encoder.prompts is not None:
            batch |= self.encoder.prompts(batch["instruction"], batch["state"].numpy(), batch.get("reasoning", ()))
        return batch

    def gather(self, name: str, source: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows (B, …) of an array of each sample's source (B,); -> (B, …, dimensions) float64."""
        if len(self.sources) == 1:
            return self.sources[0].arrays[name][rows]
        values = np.empty((*rows.shape, self.sources[0].arrays[name].shape[1]))
        for number in np.unique(source):
            values[source == number] = self.sources[number].arrays[name][rows[source == number]]
        return values

    def images(self, episode: np.ndarray, source: np.ndarray, start: np.ndarray, timestep: np.ndarray) -> torch.Tensor:
        """(B, K, 3, h, w) uint8: camera-major, oldest frame first, an episode's first frame repeated; 0 if missing."""
        fit, cameras, history = self.encoder.fit, self.present.shape[1], self.encoder.history
        images = (torch.zeros if self.is_masked else torch.empty)(
            (len(source), cameras * history, 3, fit.height, fit.width), dtype=torch.uint8
        )
        out = images.numpy()
        for number in np.unique(source):
            for camera in range(cameras):
                samples = np.flatnonzero((source == number) & self.present[episode, camera])
                for past in range(history if len(samples) else 0):
                    rows = start[samples] + np.maximum(timestep[samples] - (history - 1 - past), 0)
                    targets = [out[sample, camera * history + past] for sample in samples]
                    self.sources[number].frames.copy_to(targets, self.views[number][camera], rows)
        return images

    def text(self, kind: str, source: int, start: int, timestep: int) -> str:
        row = start + timestep
        text = self.sources[source].text(kind, row)
        if kind == "instruction":
            choices = [text, *self.phrasings.get(text.strip(), ())]
            text = choices[row * SPREAD % 2**32 * len(choices) >> 32]
            if self.previous:
                vocabulary = self.sources[source].details["vocabulary"]
                text = with_previous(text, vocabulary[self.previous[source][row]])
        return text.strip()


def present_cameras(source: EpisodeSource, views: list[int | None]) -> np.ndarray:
    """(E, cameras) bool: which episodes of a source have each camera of the model."""
    rows = np.zeros((len(source.lengths()), len(views)), bool)
    for camera, view in enumerate(views):
        if view is not None:
            rows[:, camera] = source.arrays["present"][:, view] if "present" in source.arrays else True
    return rows
