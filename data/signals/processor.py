"""Recordings in; forecasts of what follows each (NPZ, CSV or EDF), or a class for each window (CSV), out.

Shapes: C channels, n samples, k steps ahead, S forecasts, L classes.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from data import processor
from data.processor import CsvWriter, Item, Source, saved_json
from data.signals.codes import Codes
from data.signals.config import Config, PredictFlags
from data.signals.forecast import decoder_of
from data.signals.forecast_files import WRITERS, Forecast
from data.signals.mixup import quantizer_of
from data.signals.preparing import KEYS, Prepared, open_array, prepare
from data.signals.recording import SUFFIXES, TABLES_OF_BIDS
from data.signals.scaling import Scaling, aligned
from data.signals.tokenizers import TOKENIZERS

FILE = "signals.json"
# Target -> flags of predict.py that change nothing: a class is not drawn, and values are not drawn from ids.
WITHOUT_EFFECT = {
    "class": [field.name for field in fields(PredictFlags)],
    "values": ["top_k", "top_p"],
}
MOST_PAST = 2**14  # samples of a recording that a forecast starts from


class Raw(NamedTuple):
    """A window of a recording, in standardised units: values (C, n) float32, NaN where missing."""

    name: str
    values: np.ndarray


class Processor(processor.Processor):
    """Reads recordings as in training, with the scaling and the channels saved beside the model."""

    SUFFIXES, LISTS = SUFFIXES, TABLES_OF_BIDS

    def __init__(self, described: dict[str, Any], config: Config, flags: PredictFlags):
        self.described, self.config, self.flags = described, config, flags
        shift, scale = (np.array(described[name]) for name in ("shift", "scale"))
        self.scaling = Scaling(shift, scale, described["clip"])
        self.is_class = described["target"] == "class"
        self.quantizer = quantizer_of(config.mixup)
        self.tokenizer = None
        if described["target"] == "tokens" and described["tokenizer"] in TOKENIZERS:
            self.tokenizer = TOKENIZERS[described["tokenizer"]](described["levels"], described["clip"])

    @classmethod
    def from_pretrained(cls, folder: Path, config: Config, process: Any, flags: PredictFlags | None = None) -> Self:
        """See `data.processor`."""
        described = saved_json(folder, FILE)
        made = cls(described, config, flags or PredictFlags())
        if described["target"] == "text":
            raise ValueError(f"{folder}: a model of signals as text forecasts no samples; eval.py scores it")
        unused = WITHOUT_EFFECT.get(described["target"], ())
        given = [name for name in unused if getattr(made.flags, name) != getattr(PredictFlags(), name)]
        if given:
            raise ValueError(f"--{given[0]} has no effect: {folder} is of target: {described['target']}; leave it out")
        return made

    def use_encoder(self, network: Any) -> None:
        """Take the trained network that `dataset.tokenizer` names."""
        self.tokenizer = Codes(network)

    def count(self, source: Source) -> int:
        return 1

    def read(self, source: Source) -> Iterator[Item]:
        """The windows of each recording that have a class, or the end of each recording."""
        if source.path is None:
            raise ValueError("recordings are read from files, not from standard input")
        settings = {name: self.described[name] for name in KEYS} | {"label_column": None}
        with tempfile.TemporaryDirectory() as cache:
            (file,) = prepare([source.path], settings, Path(cache), 1)
            columns, is_read = self.columns(file), False
            for part in file.parts:
                name = f"{source.name}{part.name.removeprefix(source.path.name)}"  # a trial: FILE#3
                stretches = part.stretches if self.is_class else part.stretches[-1:]
                for start, stop in (window for stretch in stretches for window in self.windows(stretch, file.rate)):
                    rows = aligned(file.array()[start:stop], columns)
                    place = f"{name} samples {start - part.start} to {stop - part.start}"
                    is_read = True
                    yield Item(source, place, Raw(place if self.is_class else name, self.scaling(rows).T))
            open_array.cache_clear()  # or the file would stay on disk
        if not is_read:
            raise ValueError(f"has no window without a gap (dataset.window: {self.config.window} {self.config.unit})")

    def columns(self, file: Prepared) -> np.ndarray:
        """The columns of the model's channels in a file, by name; -1 where it lacks one that may be filled.

        Raises:
            ValueError: it lacks one, or its rate is another.
        """
        names, rate = self.described["channel_names"], self.described["rate"]
        if None not in (rate, file.rate) and abs(rate - file.rate) > 1e-6 * rate:
            raise ValueError(f"{file.rate:g} Hz, and the model was trained on {rate:g} Hz; resample the recording")
        absent = [name for name in names if name not in file.channels]
        if absent and (self.described["missing"] != "fill" or len(absent) == len(names)):
            raise ValueError(f"lacks the channels {', '.join(absent[:8])}; the model was trained on {len(names)}")
        return np.array([file.channels.index(name) if name in file.channels else -1 for name in names])

    def windows(self, stretch: list[int], rate: float | None) -> Iterator[tuple[int, int]]:
        """What is read of a stretch: its last samples; of classes the whole of it, or windows side by side."""
        start, stop = stretch
        size = self.config.window
        if not self.is_class:
            yield max(start, stop - MOST_PAST), stop
        elif size is None:
            yield start, stop
        else:
            rows = round(size * (rate or self.described["rate"])) if self.config.unit == "seconds" else round(size)
            for first in range(start, stop - rows + 1, rows):
                yield first, first + rows

    def encode(self, raw: Raw) -> Raw:
        """The window, with missing values filled."""
        missing = np.isnan(raw.values)
        # With `missing: fill` whole channels may lack.
        refused = missing[~missing.all(1)] if self.described["missing"] == "fill" else missing
        if refused.any() and self.config.nan == "error":
            raise ValueError(f"{refused.sum()} values are missing (NaN), which dataset.nan: error refuses")
        return raw._replace(values=np.where(missing, np.float32(self.described["fill_value"]), raw.values))

    def check(self, model: Any, inputs: Raw) -> None:
        if not self.is_class and not hasattr(model, "generate"):
            raise ValueError("this model continues no signals")

    def predict(self, model: Any, inputs: list[Raw]) -> list[Any]:
        """Forecasts, or probabilities (L,) of each window."""
        if not self.is_class:
            return [self.forecast(model, raw) for raw in inputs]
        import torch

        longest = max(raw.values.shape[1] for raw in inputs)
        windows = [np.pad(raw.values, ((0, 0), (0, longest - raw.values.shape[1]))) for raw in inputs]
        signal = np.stack(windows)
        signal = torch.from_numpy(signal if self.quantizer is None else self.quantizer.encode(signal))
        lengths = torch.tensor([raw.values.shape[1] for raw in inputs])
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(signal=signal.to(device), lengths=lengths.to(device))["logits"]
        chances = logits.double().softmax(-1).cpu().numpy()
        return [(raw.name, row) for raw, row in zip(inputs, chances, strict=True)]

    def forecast(self, model: Any, raw: Raw) -> Forecast:
        """S continuations of one recording, by a generator that follows from the seed and the recording's name."""
        import torch

        values, steps, hop = raw.values, self.flags.steps, 1
        if isinstance(self.tokenizer, Codes):
            hop, quantizers = self.tokenizer.hop, self.tokenizer.quantizers
            values = values[:, values.shape[1] % hop :]
            prompt = self.tokenizer.of_values(values).reshape(len(values), -1)
            steps = -(-steps // hop) * quantizers
        else:
            prompt = values if self.tokenizer is None else self.tokenizer.encode(values)
        device = next(model.parameters()).device
        seed = hashlib.blake2b(f"{self.flags.seed} {raw.name}".encode(), digest_size=7).digest()
        options = {name: getattr(self.flags, name) for name in ("temperature", "top_k", "top_p")}
        prompts = torch.from_numpy(np.ascontiguousarray(prompt)).expand(self.flags.samples, -1, -1)
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
        drawn = model.generate(prompts.to(device), steps, generator=generator, **options).cpu().numpy()
        ahead = decoder_of(self.tokenizer)(drawn)[..., values.shape[1] :][..., : self.flags.steps]
        in_files = ahead * self.scaling.scale[:, None] + self.scaling.shift[:, None]
        return Forecast(raw.name, self.described["channel_names"], self.described["rate"], in_files)

    def decode(self, outputs: list[Any]) -> list[Any]:
        """Forecasts; or rows of a table: window, probabilities, class."""
        if not self.is_class:
            return outputs
        classes = self.described["classes"]
        return [[name, *(f"{value:.6f}" for value in row), classes[int(row.argmax())]] for name, row in outputs]

    def writer(self, target: Path | BinaryIO) -> Any:
        """A table of classes, or by the ending of the output file one with forecasts."""
        assert isinstance(target, Path)
        if self.is_class:
            chances = [f"probability.{name}" for name in self.described["classes"]]
            return CsvWriter(target, ["window", *chances, "class"])
        ending = next((suffix for suffix in reversed(target.suffixes) if suffix in WRITERS), None)
        if ending is None:
            raise ValueError(f"--output: the name must end with {', '.join(WRITERS)}")
        return WRITERS[ending](target)
