"""The page of report.py: its data, tables and text against the files of runs written by hand, and in a browser."""

import base64
import http.client
import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import report
from loader.errors import ConfigError
from reporting import curves
from reporting import page as page_module
from reporting.collect import Setting, read_run
from reporting.curves import MOST_POINTS, MetricsLog, charts, group_of, thinned

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
RUN_YAML = """\
# effective: attention sdpa
task_name: text  # configs/task/text.yaml:3
output_dir: /somewhere  # cli
learning_rate: 0.001  # mine.yaml:4
seed: 42  # mine.yaml:5
lora_r: 64  # configs/training/default.yaml:30
max_steps: -1  # default
# gradient_accumulation_steps: 2  # follows from global_batch_size
model:
  name: gpt  # mine.yaml:8
  n_layer: 2  # set
  dropout: 0.0  # configs/model/gpt.yaml:9
...
"""


def training(step, **more):
    return {"step": step, "loss": 1 / step, "step_ms": 1800.0, "epoch": step / 100, **more}


def write_run(folder, records, yaml=RUN_YAML, tail=""):
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + tail)
    (folder / "run.yaml").write_text(yaml)
    return folder


@pytest.fixture
def out(tmp_path):
    records = [training(10), training(20), {"step": 20, "eval_loss": 0.5, "epoch": 0.2}, training(30)]
    return write_run(tmp_path / "out", [*records, {"step": 30, "eval_loss": 0.25, "epoch": 0.3}])


class Page(HTMLParser):
    """What a page contains: tags with attributes, texts of elements by tag, rows of tables."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.open, self.texts = [], [], [], {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        names = [tag for tag, _ in self.open]
        if "td" in names or "th" in names:
            self.rows[-1][-1] += data
        if self.open:
            tag, attributes = self.open[-1]
            self.texts.setdefault(attributes.get("id", tag), []).append(data)

    @property
    def data(self):
        return json.loads("".join(self.texts["data"]))

    def text(self, name):
        return " ".join(self.texts.get(name, []))


def made(*folders, output=None):
    words = [*map(str, folders), *(["--output", str(output)] if output else [])]
    report.main(words)
    return Page(output or folders[0] / "report.html")


# ---- curves ----


def test_the_curves_of_the_page_are_those_of_the_log(out):
    data = made(out).data
    (run,) = data["runs"]
    assert run["series"]["loss"] == [[10, 20, 30], [1 / 10, 1 / 20, 1 / 30]]
    assert run["series"]["eval_loss"] == [[20, 30], [0.5, 0.25]]
    assert run["axes"]["epoch"] == [[10, 20, 30], [0.1, 0.2, 0.3]]
    assert run["axes"]["hours"][1] == pytest.approx([0.005, 0.01, 0.015])  # 10 steps of 1.8 s are 18 s
    assert data["charts"][0] == {"title": "loss", "group": "Training", "names": ["loss", "eval_loss"]}


def test_a_repeated_step_replaces_what_came_after_it(tmp_path):
    records = [training(10), training(20), training(30), training(20, loss=7.0), training(30, loss=8.0)]
    (run,) = made(write_run(tmp_path / "out", records)).data["runs"]
    assert run["series"]["loss"] == [[10, 20, 30], [0.1, 7.0, 8.0]]
    assert run["axes"]["hours"][1] == pytest.approx([0.005, 0.01, 0.015])


def test_values_that_are_not_finite_stay_and_are_a_warning(tmp_path):
    records = [training(1), training(2, loss="nan", skipped_steps=1), training(3, loss="inf"), training(4)]
    page = made(write_run(tmp_path / "out", records))
    assert page.data["runs"][0]["series"]["loss"][1] == [1.0, "nan", "inf", 0.25]
    assert "loss (first at step 2)" in page.text("li") and "1 optimizer steps" in page.text("li")


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_counted(out):
    lines = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text("no json\n[1]\n" + lines + '{"step": 40, "lo')
    page = made(out)
    assert page.data["runs"][0]["series"]["loss"][0] == [10, 20, 30]
    assert "2 damaged lines" in page.text("li")


@pytest.mark.slow
def test_thinning_keeps_every_stretch_and_its_extremes():
    points = [(step, float(step % 7)) for step in range(100_000)]
    points[33_333], points[70_001], points[50_000] = (33_333, 99.0), (70_001, -99.0), (50_000, "nan")
    kept = thinned(points, 500)
    assert len(kept) <= 1501 and {points[33_333], points[70_001], points[50_000], points[-1]} <= set(kept)
    assert [step for step, _ in kept] == sorted({step for step, _ in kept}) and set(kept) <= set(points)
    assert max(b[0] - a[0] for a, b in zip(kept, kept[1:], strict=False)) <= 2 * 200


@pytest.mark.slow
def test_a_long_log_is_read_in_pieces_with_bounded_memory_and_a_small_page(tmp_path):
    names = [f"loss_{index}" for index in range(20)]
    folder = write_run(tmp_path / "out", [])
    log = MetricsLog(folder / "metrics.jsonl")
    for start in range(0, 12_000, 3_000):
        with open(log.path, "a") as file:
            for step in range(start, start + 3_000):
                file.write(json.dumps({"step": step, **{name: step / 3 + len(name) for name in names}}) + "\n")
        assert log.update() and not log.update()
    assert all(len(points) <= 4 * MOST_POINTS for points in log.series.values())
    assert log.series["loss_0"][0][0] == 0 and log.last_step == 11_999
    made(folder)
    assert (folder / "report.html").stat().st_size < page_module.MOST_BYTES


@pytest.mark.slow
def test_of_a_very_long_log_few_lines_are_parsed_and_nothing_notable_is_lost(tmp_path, monkeypatch):
    records = [{"step": step, "loss": 1.0 + step % 3, "grad_norm": 1.0} for step in range(1, 60_001)]
    records[20_002]["loss"], records[30_003]["loss"], records[40_004]["grad_norm"] = 9.0, "nan", 8.0
    for step in (50_005, 50_006):
        records[step] |= {"loss": "inf", "skipped_steps": 1}
    evaluations = [{"step": step, "eval_loss": step / 7} for step in range(1000, 60_001, 1000)]
    lines = sorted([*records, *evaluations], key=lambda record: record["step"])
    log = MetricsLog(write_run(tmp_path / "out", lines) / "metrics.jsonl")
    monkeypatch.setattr(curves, "MOST_BYTES_PARSED", 100_000)  # about 2,000 lines of the 60,060
    parsed, add = [], MetricsLog._add
    monkeypatch.setattr(MetricsLog, "_add", lambda self, line: (parsed.append(line), add(self, line)))
    assert log.update() and log.last_step == 60_000 and not log.update()
    assert 600 < len(parsed) < 2200
    loss, norm = dict(log.series["loss"]), dict(log.series["grad_norm"])
    assert loss[20_003] == 9.0 and loss[30_004] == "nan" and norm[40_005] == 8.0
    assert log.skipped == 2 and log.damaged == 0
    assert log.series["eval_loss"] == [(each["step"], each["eval_loss"]) for each in evaluations]
    assert max(b - a for a, b in zip(loss, list(loss)[1:], strict=False)) < 200
    with open(log.path, "a") as file:  # what is appended while it is watched is read whole
        file.writelines(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(60_001, 60_101))
    assert log.update() and len(parsed) < 2300 and list(dict(log.series["loss"]))[-100:] == list(range(60_001, 60_101))


def test_a_line_of_a_very_long_log_that_was_cut_in_a_number_is_counted(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "out", [training(step) for step in range(1, 1001)], tail='{"step": 1, "loss": 1.5e-')
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(training(step)) + "\n" for step in range(1001, 2001))
    monkeypatch.setattr(curves, "MOST_BYTES_PARSED", 50_000)
    log = MetricsLog(folder / "metrics.jsonl")
    assert log.update() and log.last_step == 2000


def test_a_log_that_was_rewritten_is_read_anew(out):
    log = MetricsLog(out / "metrics.jsonl")
    log.update()
    (out / "new").write_text(json.dumps(training(10)) + "\n" + json.dumps(training(15)) + "\n" + " " * 500 + "\n")
    (out / "new").rename(log.path)
    assert log.update() and [step for step, _ in log.series["loss"]] == [10, 15] and log.damaged == 0


@pytest.mark.parametrize(
    ("name", "group"),
    [("loss", "Training"), ("eval_f1", "Evaluation"), ("eval_runtime", "System"), ("test_loss", "Test"),
     ("step_ms", "System"), ("tokens_per_second", "System"), ("tokens", "System"), ("learning_rate", "Training")],
)  # fmt: skip
def test_metrics_are_grouped(name, group):
    assert group_of(name, ["loss", "tokens_per_second"]) == group


def test_several_runs_have_no_mixed_charts():
    run = {"loss": [(1, 1), (2, 1)], "eval_loss": [(1, 1), (2, 1)], "once": [(1, 1)]}
    assert [chart["names"] for chart in charts([run])] == [["loss", "eval_loss"]]
    assert [chart["names"] for chart in charts([run, run])] == [["loss"], ["eval_loss"]]


# ---- tables ----


def settings(folder):
    return read_run(folder, MetricsLog(folder / "metrics.jsonl"), "out", report.defaults).settings


def test_every_value_of_run_yaml_has_its_origin_and_default(out):
    found = settings(out)
    assert found["learning_rate"] == Setting("0.001", "mine.yaml:4", "5.0e-05")
    assert found["model.n_layer"] == Setting("2", "set", "null")
    assert found["gradient_accumulation_steps"].text == "2"
    assert found.keys() == {
        "task_name", "output_dir", "learning_rate", "seed", "lora_r", "max_steps", "gradient_accumulation_steps",
        "model.name", "model.n_layer", "model.dropout",
    }  # fmt: skip


def test_a_value_differs_from_the_default_by_its_value_not_its_place(out):
    changed = {path for path, setting in settings(out).items() if setting.differs}
    # seed, lora_r and model.dropout are written in files, with the default's value
    assert changed == {
        "task_name", "output_dir", "learning_rate", "gradient_accumulation_steps", "model.name", "model.n_layer",
    }  # fmt: skip
    rows = {row[0]: row[1:] for row in made(out).rows if len(row) == 4}
    assert rows["learning_rate"] == ["0.001", "5.0e-05", "mine.yaml:4"]


@pytest.mark.slow
def test_the_differences_of_two_runs_have_both_origins(out, tmp_path):
    yaml = RUN_YAML.replace("0.001  # mine.yaml:4", "3e-4  # cli").replace(
        "  n_layer: 2  # set\n", "  bias: true  # set\n"
    )
    other = write_run(tmp_path / "b" / "out", [training(5), training(10)], yaml.replace("dropout: 0.0", "dropout: 0"))
    page = made(out, other, output=tmp_path / "both.html")
    rows = [[cell.split() for cell in row] for row in page.rows if len(row) == 3]
    assert [
        row for row in rows if row[0] in (["learning_rate"], ["model.n_layer"], ["model.bias"], ["model.dropout"])
    ] == [
        [["learning_rate"], ["0.001", "mine.yaml:4"], ["3e-4", "cli"]],
        [["model.n_layer"], ["2", "set"], ["–"]],
        [["model.bias"], ["–"], ["true", "set"]],
    ]
    assert [run["name"] for run in page.data["runs"]] == [f"{tmp_path.name}/out", "b/out"]


def test_scores_have_their_interval(out):
    scores = {"task": "t", "checkpoint": "c", "seed": 1, "success_rate": 0.5, "success_low": 0.25, "success_high": 0.75,
              "mean_return": 3.0, "episodes": 4}  # fmt: skip
    (out / "film").mkdir()
    (out / "film" / "scores.json").write_text(json.dumps(scores))
    (out / "other.json").write_text('{"loss": 1}')
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "test_mean_return": 4.5, "test_runtime": 2}\n')
    rows = made(out).rows
    start = rows.index(["score", "film/scores.json", "test (metrics.jsonl)"])
    assert [[cell.split() for cell in row] for row in rows[start + 1 : start + 3]] == [
        [["success_rate"], ["50.0%", "25.0%", "–", "75.0%"], ["–"]],
        [["mean_return"], ["3"], ["4.5"]],
    ]
    assert rows[start + 3][0] == "logged value"  # and no further score


def test_scores_of_several_runs_stand_once_with_their_file(tmp_path):
    folders = [write_run(tmp_path / name, [training(10), {"step": 10, "test_f1": 0.75}]) for name in "ab"]
    for folder, values in zip(folders, ({"f1": 0.75}, {"f1": 0.5, "recall": 0.25}), strict=True):
        (folder / "scores.json").write_text(json.dumps(values))
    rows = [row for row in made(*folders, output=tmp_path / "page.html").rows if row[0].split()[0] in ("f1", "recall")]
    assert rows == [
        ["f1 scores.json", "0.75", "0.5"],
        ["recall scores.json", "–", "0.25"],
        ["f1 test (metrics.jsonl)", "–", "0.75"],  # of the first run, the same as in its file
    ]


def test_the_score_that_chooses_the_best_checkpoint_is_a_key_figure(tmp_path):
    """The first two beside the losses; each once, though several files have it."""
    yaml = RUN_YAML.replace("...", "metric_for_best_model: f1  # cli\n...")
    folder = write_run(tmp_path / "out", [training(10), {"step": 10, "test_f1": 0.75, "test_loss": 2.0}], yaml)
    scores = {"task": "t", "checkpoint": "c", "loss": 2.0, "accuracy": 0.5, "recall": 0.25, "f1": 0.75}
    (folder / "scores.json").write_text(json.dumps(scores))
    page = made(folder)
    assert page.texts["dt"] == ["lowest loss", "f1", "accuracy", "training time"]
    assert page.texts["h1"] == [f"{tmp_path.name}/out"]  # the folder's own name says nothing


def test_starts_resumes_samples_and_adaptation_are_shown(out):
    start = {"time": "2030-01-02 03:04:05 +0000", "step": 0, "notes": ["first note"], "data": ["1,234 sentences"]}
    lines = [start, start | {"step": 20, "changed": ["`learning_rate` was 3"]}]
    (out / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change = {"seed": {"before": 1, "after": 2, "origin": "cli"}}
    (out / "resumed.json").write_text(json.dumps([{"step": 20, "changed": change}]))
    samples = [{"step": step, "eval_loss": 1.5, "text": f"text {step}"} for step in (10, 20)]
    (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    part = {"parameters": 1000, "trained": 1000, "learning_rate": [0.5], "bytes": 4000}
    (out / "adaptation.json").write_text(json.dumps({"parts": {"head": part}, "total": part}))
    page = made(out)
    assert page.data["runs"][0]["resumes"] == [20]
    assert page.texts["pre"] == ["text 20", "text 10"]  # the latest first
    assert {"first note", "1,234 sentences", "`learning_rate` was 3", "seed: 1 → 2 (cli)"} <= set(page.texts["li"])
    assert ["head", "1,000", "1,000", "–", "–", "–", "–", "4,000", "0.5"] in page.rows


def test_films_and_pictures_are_embedded_until_the_page_is_full(out):
    (out / "eval").mkdir()
    Image.new("RGB", (2, 2)).save(out / "eval" / "sheet.png")
    (out / "eval" / "short.mp4").write_bytes(b"film")
    (out / "eval" / "long.mp4").write_bytes(bytes(6_000_000))
    page = made(out)
    sources = [attributes["src"] for tag, attributes in page.tags if tag in ("img", "video")]
    picture = base64.b64encode((out / "eval" / "sheet.png").read_bytes()).decode()
    assert sources == ["data:video/mp4;base64,ZmlsbQ==", f"data:image/png;base64,{picture}"]
    assert "eval/long.mp4 (6.0 MB)" in page.text("p")
    assert (out / "report.html").stat().st_size < page_module.MOST_BYTES


@pytest.mark.slow
def test_texts_leave_less_room_for_pictures(out, monkeypatch):
    lines = [json.dumps({"step": step, "text": "ö" * 5000}) + "\n" for step in range(40)]
    (out / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    for number in range(100):
        (out / f"{number}.png").write_bytes(bytes(50_000))
    made(out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 4_800_000 < len(page.encode()) < page_module.MOST_BYTES
    assert page.count(".png (0.1 MB)") == page_module.MOST_NAMES  # of those left out; the others are counted


# ---- hostile and missing input ----


def test_a_phone_may_zoom(out):
    (viewport,) = [attributes["content"] for _, attributes in made(out).tags if attributes.get("name") == "viewport"]
    assert "width=device-width" in viewport and not {"maximum-scale", "user-scalable"} & set(
        re.split(r"[=,\s]+", viewport)
    )


@pytest.mark.slow
def test_markup_is_text_everywhere(tmp_path):
    record = {**training(1), f"loss_{MARKUP}": 1.0}
    yaml = RUN_YAML + f"extra: {json.dumps(MARKUP)}  # {MARKUP}\n{json.dumps(MARKUP)}: 1  # cli\n".replace("...\n", "")
    folder = write_run(
        tmp_path / "<img src=x onerror=alert(1)>", [record, {**record, "step": 2}], yaml.replace("...\n", "")
    )
    line = json.dumps(
        {"step": 1, "text": MARKUP, "time": MARKUP, "notes": [MARKUP], "data": [MARKUP], "model": [MARKUP]}
    )
    (folder / "samples.jsonl").write_text(line + "\n")
    (folder / "starts.jsonl").write_text(line + "\n")
    (folder / "scores.json").write_text(json.dumps({"task": MARKUP, "checkpoint": "c", MARKUP: 1, "samples": [MARKUP]}))
    (folder / "adaptation.json").write_text(
        json.dumps({"parts": {MARKUP: {"parameters": MARKUP, "learning_rate": [MARKUP]}}})
    )
    (folder / "eval").mkdir()
    Image.new("RGB", (2, 2)).save(folder / "eval" / "a<b onload=alert(1)>.png")
    page = made(folder)
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert all(attributes["src"].startswith("data:") for _, attributes in page.tags if "src" in attributes)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.data["runs"][0]["series"][f"loss_{MARKUP}"] == [[1, 2], [1.0, 1.0]]
    assert page.texts["pre"] == [MARKUP, MARKUP] and page.texts["h1"] == [folder.name]
    assert not re.search(
        r"https?://", re.sub(r"(?s)<script.*?</script>|<!--.*?-->", "", (folder / "report.html").read_text())
    )


def test_damaged_files_are_warnings(out):
    (out / "adaptation.json").write_text("[1")
    (out / "resumed.json").write_text("{}")
    (out / "starts.jsonl").write_text('{"step": 1}\nnot json\n')
    (out / "run.yaml").write_text("a: [1\n")
    warnings = made(out).text("li")
    assert all(name in warnings for name in ("adaptation.json", "resumed.json", "starts.jsonl", "run.yaml"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("adaptation.json", '{"parts": 1, "total": [1], "learning_rate": 3}'), ("resumed.json", '[1, {"changed": 2}]'),
     ("adaptation.json", '{"total": {"parameters": "x"}}'), ("resumed.json", '[{"step": [1]}]'),
     ("starts.jsonl", '{"step": [1]}\n'),
     ("starts.jsonl", '{"step": "x", "data": 3, "notes": {"a": 1}}\n[1]\n'), ("samples.jsonl", '{"text": 1}\n'),
     ("scores.json", '{"task": 1, "checkpoint": 2, "samples": 3, "a": {"b": []}}'), ("run.yaml", "- 1\n"),
     ("run.yaml", ""), ("run.yaml", "a: &a [1]\nb: *a\n? [c]\n: d\n"), ("metrics.jsonl", '{"step": true}\n'),
     ("metrics.jsonl", '{"step": 1, "epoch": NaN, "step_ms": NaN, "loss": NaN, "big": 1' + "0" * 400 + "}\n")],
)  # fmt: skip
def test_files_of_another_kind_do_no_harm(out, name, content):
    (out / name).write_text(content)
    assert made(out).data["runs"]


def test_a_folder_named_from_the_working_folder_and_twice_is_one_run(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (out / "adaptation.json").write_text("{}")
    report.main(["out", "./out", str(out)])
    assert len(Page(out / "report.html").data["runs"]) == 1


def test_a_folder_that_is_no_run_is_refused(out, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        report.command_line(report.main, [str(out), str(tmp_path / "empty"), "--output", str(tmp_path / "x.html")])
    assert ended.value.code == 2 and not (tmp_path / "x.html").exists()
    assert str(tmp_path / "empty") in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--watch", "--output", "x.html"], ["--port", "80"], ["--port", "99999", "--watch"], ["--no"]]
)
def test_flags_without_effect_are_refused(out, words):
    with pytest.raises(ConfigError):
        report.main([str(out), *words])


def test_without_bokeh_the_command_ends_with_the_remedy_and_a_run_goes_on(out, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bokeh" else find(name))
    with pytest.raises(ConfigError, match=r"pip install .*report"):
        report.main([str(out)])
    report.write_report(out)
    assert not (out / "report.html").exists() and capsys.readouterr().err.count("\n") == 1


def test_an_error_of_the_page_is_one_line_of_the_run(out, monkeypatch, capsys):
    monkeypatch.setattr(report, "page", lambda runs: 1 / 0)
    report.write_report(out)
    assert "division by zero" in capsys.readouterr().err and not (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.keys("report")
def test_a_run_writes_its_page_unless_report_is_false(run):
    run("report: true")
    page = Page(run.folder / "out" / "report.html")
    assert page.data["runs"][0]["series"]["loss"][1] == list(run.log("loss").values())
    assert "1 for training (12 steps)" in page.text("li")  # the data's summary
    run("report: false", out="without")
    assert not (run.folder / "without" / "report.html").exists()


# ---- --watch ----


@pytest.mark.slow
def test_watch_serves_this_machine_alone_until_it_is_stopped(out):
    process = subprocess.Popen(
        [sys.executable, "report.py", str(out), "--watch", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])

        def answer(path, host="127.0.0.1"):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", path, headers={"Host": host})
            response = connection.getresponse()
            return response.status, response.read().decode()

        assert answer("/")[0] == 200 and 'data-live="true"' in answer("/")[1]
        first = json.loads(answer("/data.json")[1])
        assert first["data"]["runs"][0]["series"]["loss"][0] == [10, 20, 30] and "<h2" in first["parts"]
        known = "/data.json?" + "&".join(f"{name}={value}" for name, value in first["hashes"].items())
        assert json.loads(answer(known)[1]) == {"hashes": first["hashes"]}
        with open(out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(training(40)) + "\n")
        assert json.loads(answer(known)[1])["data"]["runs"][0]["series"]["loss"][0] == [10, 20, 30, 40]
        assert answer("/", host="evil.example")[0] == 404 and answer("/../run.yaml")[0] == 404
        with socket.socket() as other, pytest.raises(OSError):
            other.connect(("127.0.0.2", port))  # of the same machine, and not the address that it listens on
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and not (out / "report.html").exists()
    finally:
        process.kill()
        process.wait()


# ---- in a browser ----

CLICKS = """
const change = (selector, value) => {
  const input = document.querySelector(selector);
  input.value = value;
  for (const name of ["input", "change"]) input.dispatchEvent(new Event(name, { bubbles: true }));
};
const waiting = setInterval(() => {
  if (!document.querySelector(".legend b")) return;  // not drawn yet
  clearInterval(waiting);
  document.querySelector("[value=log]").click();
  change("#smooth", "0.8");
  change("#from", "5");
  change("#to", "45");
  const chart = document.querySelector(".chart");
  for (const key of ["Home", "ArrowRight", "ArrowRight"]) chart.dispatchEvent(new KeyboardEvent("keydown", { key }));
  console.info("READ " + chart.querySelector(".legend").textContent);
}, 100);
"""


@pytest.fixture
def screenshot(tmp_path):
    """(page, scheme) -> the picture's colours with their numbers of pixels, and the lines of the console."""

    def taken(path, scheme):
        picture = tmp_path / "page.png"
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,1400", "--virtual-time-budget=8000",
            f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}", f"--screenshot={picture}",
        ]  # fmt: skip
        done = subprocess.run([CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=300)
        assert picture.exists(), done.stderr[-2000:]
        # Not errors: Bokeh's greeting, and the browser's note that a layout took more than one frame.
        harmless = re.compile("document idle|ResizeObserver loop")
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and not harmless.search(line)]
        with Image.open(picture) as image:
            return {color: count for count, color in image.convert("RGB").getcolors(2**24)}, console

    return taken


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
@pytest.mark.parametrize(("scheme", "clicks"), [("light", ""), ("dark", CLICKS)])
def test_a_browser_draws_the_curves_without_an_error(tmp_path, screenshot, scheme, clicks):
    records = [training(step, loss="nan" if step == 20 else 1 / step, weight_decay=0.1) for step in range(1, 51)]
    records = [record | {MARKUP: record["step"]} for record in records]
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>", records)
    (folder / "starts.jsonl").write_text('{"step": 10}\n')
    path = tmp_path / "page.html"
    made(folder, output=path)
    text = path.read_text()
    nonce = re.search(r'<script nonce="([^"]+)"', text)[1]
    path.write_text(text.replace("</body>", f'<script nonce="{nonce}">{clicks}</script></body>'))
    colors, console = screenshot(path, scheme)
    ground, line = {
        "light": ((251, 251, 250), (47, 102, 144)),
        "dark": ((21, 23, 26), (127, 178, 217)),
    }[scheme]
    assert colors[ground] > 100_000 and colors[line] > 1000, "the curves are not drawn"
    if clicks:  # the first step in the range is 5, two further is 7
        assert len(console) == 1 and "READ 0.1429 at 7" in console[0], console
    else:
        assert console == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_a_browser_overlays_the_curves_of_several_runs(tmp_path, screenshot):
    records = [training(step, loss=1 / step) for step in range(1, 40)]
    folders = [write_run(tmp_path / name, [record | {"loss": record["loss"] * size} for record in records])
               for name, size in (("a", 1), ("b", 2), ("c", 3))]  # fmt: skip
    made(*folders, output=tmp_path / "page.html")
    colors, console = screenshot(tmp_path / "page.html", "light")
    assert console == []
    assert all(colors[color] > 200 for color in ((47, 102, 144), (209, 104, 59), (61, 139, 106)))
