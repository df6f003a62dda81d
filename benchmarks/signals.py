"""Windows a second from prepared recordings against MNE reading the file for each; memory that preparing takes.

    python benchmarks/signals.py [megabytes of the recording that is prepared: 200]

An EDF file of 64 channels at 256 Hz, windows of 256 samples, which MNE opens once or for each window; and a large one,
high-passed and resampled to 100 Hz. Prints one JSON line: windows per second of CPU time of each, the ratios, and the
seconds and the peak memory (MB) of the process that prepares.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CHANNELS, RATE, WINDOW, BATCH, BATCHES = 64, 256, 256, 64, 40
SMALL_MEGABYTES = 100


def write_edf(path: Path, megabytes: int) -> int:
    """An EDF file of noise that drifts, written a second at a time; returns its seconds."""
    seconds = megabytes * 10**6 // (2 * CHANNELS * RATE)
    fields = [
        *((f"EEG {number}", 16) for number in range(CHANNELS)),
        *(("", 80),) * CHANNELS,
        *((value, 8) for value in ("uV", "-3276.8", "3276.7", "-32768", "32767") for _ in range(CHANNELS)),
        *(("", 80),) * CHANNELS,
        *((str(RATE), 8),) * CHANNELS,
        *(("", 32),) * CHANNELS,
    ]
    start = [("0", 8), ("X X X X", 80), ("Startdate X X X X", 80), ("01.01.01", 8), ("00.00.00", 8)]
    start += [(str(256 * (CHANNELS + 1)), 8), ("", 44), (str(seconds), 8), ("1", 8), (str(CHANNELS), 4)]
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write("".join(text.ljust(width) for text, width in start + fields).encode("ascii"))
        for second in range(seconds):
            noise = generator.integers(-1000, 1000, (CHANNELS, RATE), np.int16)
            file.write((noise + np.int16(500 * np.sin(second / 60))).astype("<i2").tobytes())
    return seconds


def prepare_only(path: str, cache: str) -> None:
    """What the subprocess does: prepare one recording and print its peak memory."""
    from data.signals.preparing import KEYS, prepare

    begin = time.perf_counter()
    settings = dict.fromkeys(KEYS) | {"highpass": 0.5, "resample": 100.0}
    prepare([Path(path)], settings, Path(cache), 1)
    seconds = time.perf_counter() - begin
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"prepare_seconds": round(seconds, 1), "prepare_peak_mb": round(peak)}))


def rate(batch_of, numbers: list[int]) -> float:
    """Windows a second of CPU time, in whole batches, after one to warm up."""
    batch_of(numbers[:BATCH])
    begin = time.process_time()
    for first in range(0, len(numbers), BATCH):
        batch_of(numbers[first : first + BATCH])
    return len(numbers) / (time.process_time() - begin)


class Lazy:
    """The same batches, from a file that MNE opens without loading it: once, or for each window."""

    def __init__(self, path: Path, dataset: object, is_reopened: bool):
        self.path, self.dataset, self.is_reopened = path, dataset, is_reopened
        self.raw = self.open()

    def open(self) -> object:
        import mne

        return mne.io.read_raw_edf(self.path, preload=False, verbose="ERROR")

    def __call__(self, numbers: list[int]) -> dict[str, np.ndarray]:
        scaling, windows = self.dataset.signals.scaling, self.dataset.windows(numbers)
        shift, scale = scaling.shift[:, None], scaling.scale[:, None]
        batch = np.empty((len(numbers), CHANNELS, WINDOW + 1), np.float32)
        for row, start in zip(batch, windows[:, 1].tolist(), strict=True):
            raw = self.open() if self.is_reopened else self.raw
            values = raw.get_data(start=start, stop=start + WINDOW + 1)
            row[:] = np.clip((values - shift) / scale, -scaling.clip, scaling.clip)
        return {"signal": batch[..., :-1], "labels": batch[..., 1:]}


def throughput(path: Path, cache: Path) -> dict[str, object]:
    from data.signals import Config, build

    run = SimpleNamespace(
        seed=0,
        cache_dir=cache,
        trainer={},
        samples_per_step=BATCH,
        process=SimpleNamespace(shuffle=True),
        hyper=SimpleNamespace(per_device_train_batch_size=BATCH),
    )
    dataset = build(Config(path=str(path), target="values", window=WINDOW), run).train_dataset
    opened, reopened = (Lazy(path, dataset, is_reopened) for is_reopened in (False, True))
    ours, truth = dataset.__getitems__(range(BATCH)), opened(range(BATCH))
    assert all(np.allclose(ours[key], truth[key], atol=1e-4) for key in truth)
    numbers = list(range(BATCH * BATCHES))
    rates = [rate(dataset.__getitems__, numbers), rate(opened, numbers[: BATCH * 8]), rate(reopened, numbers[:BATCH])]
    return {
        "prepared_windows_per_s": round(rates[0]),
        "mne_opened_once": round(rates[1]),
        "mne_opened_each_time": round(rates[2]),
        "ratios": [round(rates[0] / rates[1], 1), round(rates[0] / rates[2], 1)],
    }


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_edf(folder / "small.edf", SMALL_MEGABYTES)
        scores = throughput(folder / "small.edf", folder / "cache")
        write_edf(folder / "large.edf", megabytes)
        command = [sys.executable, __file__, "--prepare", str(folder / "large.edf"), str(folder / "cache")]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        scores |= {"prepared_mb": megabytes, **json.loads(shown.splitlines()[-1])}
    print(json.dumps(scores))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare_only(*sys.argv[2:])
    else:
        main()
