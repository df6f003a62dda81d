"""Signals as text, and as the codes of a trained network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from signal_files import signal_run, walk, write_npz

from data.signals import Config, build, check, make
from data.signals.codes import CONTEXT_FRAMES, Codes
from data.signals.config import DataSplitter
from data.signals.text import FIRST_CHARACTER, NO_CHANNEL, PAD, SEPARATOR, SignalText, text_of

LEVELS = 8


def by_samples(group, use_separator, merges=()):
    """A tokenizer of LEVELS ids with the given merges of characters."""
    from tokenizers import Tokenizer, models

    letters = [chr(FIRST_CHARACTER + level) for level in range(LEVELS)]
    pairs = [(letters[first], letters[second]) for first, second in merges]
    tokens = [PAD, SEPARATOR, *letters, *("".join(pair) for pair in pairs)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, pairs))
    return SignalText(tokenizer, LEVELS, group, use_separator)


def decoded(text, tokens, channels):
    """The ids (C, T) that tokens stand for."""
    letters = [
        "".join(text.tokenizer.id_to_token(int(t)) for t in tokens[channels == c]) for c in range(channels.max() + 1)
    ]
    return [[ord(letter) - FIRST_CHARACTER for letter in row] for row in letters]


def test_each_token_knows_its_channel_by_hand():
    """Three channels, groups of 2 and a last one of 1; ids are tokens 2 … 9; 10 is the pair (3, 3)."""
    ids = np.array([[0, 1, 2], [3, 3, 3], [4, 5, 6]])
    tokens, channels, samples = by_samples(2, False, [(3, 3)]).encode(ids)
    assert tokens.tolist() == [2, 3, 10, 6, 7, 4, 5, 8]
    assert channels.tolist() == [0, 0, 1, 2, 2, 0, 1, 2]
    assert samples.tolist() == [1, 1, 2, 1, 1, 1, 1, 1]
    tokens, channels, _ = by_samples(2, True, [(3, 3)]).encode(ids)
    assert tokens.tolist() == [2, 3, 1, 10, 1, 6, 7, 1, 4, 1, 5, 1, 8]
    assert channels.tolist() == [0, 0, -1, 1, -1, 2, 2, -1, 0, -1, 1, -1, 2]


@pytest.mark.parametrize("use_separator", [True, False])
@pytest.mark.parametrize("samples", [1, 49, 50, 51, 130])
def test_decoding_gives_the_ids_back(use_separator, samples):
    text = by_samples(50, use_separator, [(0, 1), (2, 2), (3, 4)])
    ids = np.random.default_rng(samples).integers(0, LEVELS, (3, samples))
    tokens, channels, counts = text.encode(ids)
    np.testing.assert_array_equal(decoded(text, tokens, channels), ids)
    assert len(tokens) <= text.longest(3, samples) and counts.sum() == 3 * samples
    separators = 3 * -(-samples // 50) - 1 if use_separator else 0
    assert (channels == NO_CHANNEL).sum() == separators


def test_ids_outside_the_levels_are_refused():
    with pytest.raises(ValueError, match="id 8 .* 8 levels"):
        by_samples(2, True).encode(np.array([[0, 8]]))


def text_config(tmp_path, values=None, **given):
    path = tmp_path / "a.npz"
    if not path.exists():
        write_npz(path, walk(2, 2000) if values is None else values)
    given = {"window": 70, "levels": 32, "tokenizer_size": 80, "tokenizer_path": str(tmp_path / "text")} | given
    return Config(path=str(path), target="text", **given)


@pytest.mark.keys("dataset(signals).tokenizer_path", "dataset(signals).tokenizer_size", "dataset(signals).group")
def test_a_tokenizer_is_trained_saved_and_used(tmp_path):
    run, config = signal_run(tmp_path / "cache"), text_config(tmp_path, group=25)
    assert "no tokenizer/tokenizer.json" in check(config, run)[0]
    assert make(config, run, None) == tmp_path / "text" and check(config, run) == []
    made = (tmp_path / "text/tokenizer/tokenizer.json").stat().st_mtime_ns
    make(config, run, None)
    assert (tmp_path / "text/tokenizer/tokenizer.json").stat().st_mtime_ns == made
    bundle = build(config, run)
    assert bundle.dims.items() >= {"context": 70 * 2 + 5, "vocab_size": 80, "channels": 2}.items()
    batch = bundle.train_dataset.__getitems__([0, 1, 2])
    plain = build(Config(path=config.path, window=70, levels=32), run).train_dataset.__getitems__([0, 1, 2])
    text = bundle.train_dataset.text
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        tokens, channels = batch["input_ids"][row, :length], batch["channels"][row, :length]
        np.testing.assert_array_equal(decoded(text, tokens, channels), plain["input_ids"][row])
        assert torch.equal(batch["labels"][row, : length - 1], tokens[1:])
        assert (batch["labels"][row, length - 1 :] == -100).all() and (batch["channels"][row, length:] == -1).all()
        assert (batch["attention_mask"][row, length:] == 0).all() and length < 2 * 70  # it is shorter than the samples
        first_group = channels[: (channels == 1).nonzero()[0, 0]]
        assert first_group[:-1].unique().tolist() == [0] and first_group[-1] == -1


@pytest.mark.keys("dataset(signals).max_length", "dataset(signals).use_separator")
def test_long_texts_are_cut_and_separators_left_out(tmp_path):
    run = signal_run(tmp_path / "cache")
    make(text_config(tmp_path), run, None)
    whole = build(text_config(tmp_path, use_separator=False), run)
    assert whole.dims["context"] == 140 and not (whole.train_dataset[0]["channels"] == -1).any()
    cut = build(text_config(tmp_path, use_separator=False, max_length=20), run)
    batch, full = cut.train_dataset[0], whole.train_dataset[0]
    assert cut.dims["context"] == 20 and torch.equal(batch["input_ids"], full["input_ids"][:20])
    assert torch.equal(batch["labels"], full["labels"][:20])


def test_overlapping_texts_score_each_sample_once(tmp_path):
    """What a window has in common with the one before it is seen, and no target."""
    run, config = signal_run(tmp_path / "cache"), text_config(tmp_path, overlap=21, group=7, use_separator=False)
    make(config, run, None)
    dataset = build(config, run).eval_datasets["validation"]
    shared = [int(dataset.windows.overlaps([number])[0]) for number in range(len(dataset))]
    assert sorted(shared) == [0, 21, 21]
    for number, before in enumerate(shared):
        sample = dataset[number]
        known = sample["attention_mask"] == 1
        tokens, channels = sample["input_ids"][known], sample["channels"][known]
        lengths = torch.tensor([len(dataset.text.tokenizer.id_to_token(int(token))) for token in tokens])
        ends = torch.stack([(lengths * (channels == row)).cumsum(0) for row in range(2)]).gather(0, channels[None])[0]
        expected = torch.where(ends - lengths < before, -100, tokens)[1:]
        assert torch.equal(sample["labels"][known][:-1], expected) and (sample["labels"] >= 0).any()


@pytest.mark.slow
def test_tokens_of_missing_samples_are_no_targets(tmp_path):
    values = walk(2, 2000)
    values[0, 100:105] = np.nan
    run, config = signal_run(tmp_path / "cache"), text_config(tmp_path, values, nan="fill", sampling="grid", group=7)
    make(config, run, None)
    dataset = build(config, run).train_dataset
    samples = [dataset[number] for number in range(len(dataset))]
    starts = [dataset.windows([number])[0, 1] for number in range(len(dataset))]
    sample = samples[starts.index(70)]  # samples 30 … 34 of it are missing
    tokens, channels = sample["input_ids"], sample["channels"]
    lengths = [len(dataset.text.tokenizer.id_to_token(int(token))) for token in tokens]
    place, missing = 0, []
    for channel, length in zip(channels, lengths, strict=True):
        covered = range(place, place + length) if channel == 0 else ()
        place += length if channel == 0 else 0
        missing.append(any(30 <= sample < 35 for sample in covered))
    expected = torch.where(torch.tensor(missing), -100, tokens)[1:]
    assert any(missing) and torch.equal(sample["labels"][:-1], expected)


def test_a_tokenizer_for_other_ids_and_a_folder_without_one(tmp_path):
    run, config = signal_run(tmp_path / "cache"), text_config(tmp_path)
    make(config, run, None)
    assert "levels 32, not 64" in check(text_config(tmp_path, levels=64), run)[0]
    with pytest.raises(ValueError, match="levels 32, not 64"):
        make(text_config(tmp_path, levels=64), run, None)
    assert "tokenizer_path is missing" in check(text_config(tmp_path, tokenizer_path=None), run)[0]
    (tmp_path / "text/tokenizer/signals.json").unlink()
    assert "signals.json" in check(config, run)[0]
    with pytest.raises(ValueError, match="tokenizer_size: 33"):
        make(text_config(tmp_path, tokenizer_size=33, tokenizer_path=str(tmp_path / "b")), run, None)
    with pytest.raises(ValueError, match="--source x"):
        make(config, run, "x")


def test_characters_are_one_each():
    ids = np.array([0, 1, 65535])
    assert [ord(character) - FIRST_CHARACTER for character in text_of(ids)] == [0, 1, 65535]
    text_of(ids).encode("utf-8")


# ---- codes ----


class Encoder:
    """A causal network by hand: id 0 says the sign of a frame's sum, id 1 that of the sum over two frames before."""

    config = SimpleNamespace(hop=4, quantizers=2, levels=3)

    def encode(self, signal):
        """(B, n) -> (B, n / 4, 2)"""
        sums = signal.unflatten(1, (-1, 4)).sum(-1)
        before = torch.nn.functional.pad(sums, (2, 0))[:, :-2]
        return torch.stack([1 + sums.sign(), 1 + before.sign()], -1).long()

    def decode(self, ids):
        return (ids[..., 0] - 1).float().repeat_interleave(4, 1)


@pytest.fixture
def coded(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return str(folder)


def test_codes_are_those_of_the_whole_recording(tmp_path, coded, monkeypatch):
    monkeypatch.setattr("data.signals.codes.BLOCK_FRAMES", 7)
    values = walk(2, 1003)
    values[1, 400:402] = np.nan
    write_npz(tmp_path / "a.npz", values)
    splitter = DataSplitter(eval_fraction=0.3)
    given = {"path": str(tmp_path / "a.npz"), "nan": "fill", "datasplitter": splitter, "window": 40}
    run = signal_run(tmp_path / "cache")
    plain = build(Config(**given, target="values"), run)
    bundle = build(Config(**given, tokenizer=coded, overlap=20), run, encoder=Encoder())
    assert bundle.dims.items() >= {"context": 20, "vocab_size": 6, "channels": 2}.items() and CONTEXT_FRAMES > 2
    for dataset, truth in ((bundle.train_dataset, plain.train_dataset), *zip(
        bundle.eval_datasets.values(), plain.eval_datasets.values(), strict=True
    )):  # fmt: skip
        ((_, ids),), ((_, signal),) = dataset.recording_ids(), truth.recordings()
        frames = signal.shape[1] // 4
        whole = Encoder().encode(torch.from_numpy(np.nan_to_num(signal[:, : frames * 4]))).numpy() + [0, 3]
        missing = np.isnan(signal[:, : frames * 4]).reshape(2, frames, 4).any(-1)
        whole[missing] = -1
        np.testing.assert_array_equal(ids, whole.reshape(2, -1))
    batch = bundle.train_dataset.__getitems__(list(range(64)))
    assert batch["input_ids"].shape == batch["labels"].shape == (64, 2, 20)
    assert (batch["input_ids"][..., ::2] < 3).all() and (batch["input_ids"][..., 1::2] >= 3)[:, 0].all()
    validation = bundle.eval_datasets["validation"]
    assert validation.windows.hop == 10
    decoded = Codes(Encoder()).decode(np.array([[0, 3, 2, 4]]))
    np.testing.assert_array_equal(decoded, [[-1, -1, -1, -1, 1, 1, 1, 1]])


def test_windows_are_whole_frames_and_a_folder_has_a_network(tmp_path, coded):
    path, run = str(write_npz(tmp_path / "a.npz", walk(1, 500))), signal_run(tmp_path / "cache")
    with pytest.raises(ValueError, match="multiples of 4"):
        build(Config(path=path, tokenizer=coded, window=30), run, encoder=Encoder())
    assert "dataset.tokenizer: mu_laww" in check(Config(path=path, tokenizer="mu_laww"), run)[0]


@pytest.mark.slow
def test_prepare_py_trains_a_tokenizer_and_loads_networks(tmp_path, capsys, in_root):
    from run_results import error_line

    from models.rvq.network import RVQ, RVQConfig
    from prepare import load_encoder, main

    path = write_npz(tmp_path / "a.npz", walk(2, 2000))
    given = {"path": path, "target": "text", "window": 200, "tokenizer_path": tmp_path / "text"}
    words = ["--task_name", "signals", "--set", *(f"dataset.{key}={value}" for key, value in given.items())]
    main(words)
    assert (tmp_path / "text/tokenizer/tokenizer.json").is_file()
    assert "dataset.path" in error_line(capsys, main, [*words, "--source", "x"])

    network = RVQ(RVQConfig(context=16))
    network.save_pretrained(tmp_path / "net")
    loaded, signal = load_encoder(str(tmp_path / "net")), torch.randn(2, 16)
    assert torch.equal(loaded.encode(signal), network.eval().encode(signal))
    (tmp_path / "net/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="bert"):
        load_encoder(str(tmp_path / "net"))
