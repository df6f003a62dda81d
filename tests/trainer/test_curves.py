"""`python -m trainer.curves`: every run that is named is drawn, in one picture."""

import json

import matplotlib.image
import pytest

from trainer import curves


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        lines = [{"step": step, "loss": 3.0 - number - step / 10, "grad_norm": 1.0, "note": "x"} for step in range(5)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "picture", "labels"),
    [
        (["a"], "a/curves.png", {"loss"}),
        (["a", "b"], "curves.png", {"a: loss", "b: loss"}),
        (["a", "b", "both.png"], "both.png", {"a: loss", "b: loss"}),
        (["b", "one.svg"], "one.svg", {"loss"}),
    ],
)
def test_the_runs_and_the_picture(runs, monkeypatch, capsys, words, picture, labels):
    from matplotlib.axes import Axes

    drawn, plot = {}, Axes.plot

    def noted(axis, steps, values, label, **options):
        drawn[label] = list(zip(steps, values, strict=True))
        return plot(axis, steps, values, label=label, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    curves.main(words)
    assert capsys.readouterr().out.strip() == picture
    assert {label for label in drawn if label.endswith("loss")} == labels
    for label in labels:
        first = 2.0 if label.startswith("b") or words[0] == "b" else 3.0
        assert drawn[label] == [(step, first - step / 10) for step in range(5)]
    if picture.endswith(".png"):
        assert matplotlib.image.imread(runs / picture).std() > 0
    assert [path.name for path in runs.rglob("*.png")] + [path.name for path in runs.rglob("*.svg")] == [
        picture.split("/")[-1]
    ]


def test_a_run_that_is_missing_is_one_line(runs, capsys):
    with pytest.raises(SystemExit) as left:
        curves.main(["a", "c"])
    assert left.value.code == 2 and "c/metrics.jsonl" in capsys.readouterr().err
    assert not (runs / "curves.png").exists()
