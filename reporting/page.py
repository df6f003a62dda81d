"""Write runs as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import importlib.util
import json
import secrets
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reporting.collect import MEDIA, Run, Setting, differences
from reporting.curves import page_data

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000  # of a page
INSTALL = "pip install -e .[report]"
BOKEH = ("bokeh.min.js", "bokeh-api.min.js")
COUNTS = ("parameters", "trained", "frozen", "quantized", "adapter", "adapted")
MOST_TEXT = 4000  # characters of a sample or a value
MOST_NAMES = 20  # of files that are not embedded
escape = html.escape


class LibraryMissing(ValueError):
    """The package that draws the curves is not installed."""


def library() -> tuple[str, str]:
    """Return BokehJS's source and its licence.

    Raises:
        LibraryMissing: Bokeh is not installed, or has no such files.
    """
    spec = importlib.util.find_spec("bokeh")  # importing it would take longer than writing the page
    for folder in map(Path, spec.submodule_search_locations or ()) if spec else ():
        try:
            scripts = [(folder / "server/static/js" / name).read_text(encoding="utf-8") for name in BOKEH]
            return "\n".join(scripts), (folder / "LICENSE.txt").read_text(encoding="utf-8")
        except OSError as error:
            raise LibraryMissing(f"Bokeh has no {error.filename}: {INSTALL}") from error
    raise LibraryMissing(f"a report needs Bokeh: {INSTALL}")


def page(runs: Sequence[Run], live: bool = False, most_bytes: int = MOST_BYTES) -> str:
    """Return the page. Films and pictures that would exceed `most_bytes` are listed, not embedded."""
    script, licence = library()
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    values = {
        "nonce": secrets.token_urlsafe(12),
        "connect": "'self'" if live else "'none'",
        "live": str(live).lower(),
        "title": escape(title),
        "style": (HERE / "style.css").read_text(encoding="utf-8"),
        "script": (HERE / "app.js").read_text(encoding="utf-8"),
        "library": script,
        "licence": escape(licence.replace("--", "- -")),
        "head": head(runs),
        "data": json_text(runs_data(runs)),
        "footer": "Written by Keel’s report.py.",
    }
    budget = most_bytes - sum(len(value.encode()) for value in values.values()) - 100_000
    sections = parts(runs, budget)
    values["parts"] = sections_html(sections)
    values["nav"] = "".join(
        f'<a href="#{name}">{escape(text)}</a>' for name, text, _ in [("curves", "Curves", ""), *sections]
    )
    template = string.Template((HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(values)


def runs_data(runs: Sequence[Run]) -> dict[str, Any]:
    return page_data([(run.name, run.log, run.resume_steps) for run in runs])


def json_text(value: Any) -> str:
    """Return JSON that can stand in a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def sections_html(sections: Sequence[tuple[str, str, str]]) -> str:
    return "".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{escape(text)}</h2>{body}</section>'
        for name, text, body in sections
    )


def parts(runs: Sequence[Run], budget: int) -> list[tuple[str, str, str]]:
    """Return the sections below the curves that have content: id, title, HTML.

    Args:
        budget: Bytes that they may have; films and pictures get what the others leave.
    """
    if len(runs) > 1:
        found = [
            ("scores", "Scores and values", scores_table(runs)),
            ("config", "Configuration", differences_table(runs)),
        ]
    else:
        (run,) = runs
        found = [
            ("scores", "Scores and values", scores_table(runs)),
            ("samples", "Samples", samples(run)),
            ("config", "Configuration", configuration(run)),
            ("model", "Model", model(run)),
            ("data-summary", "Data", lines_of(run, "data")),
            ("history", "History", history(run)),
        ]
        budget -= sum(len(body.encode()) for _, _, body in found)
        found.insert(1, ("media", "Films and pictures", media(run, budget)))
    return [(name, title, body) for name, title, body in found if body]


def head(runs: Sequence[Run]) -> str:
    """The title, key figures and warnings; of several runs, their list with colours."""
    warnings = [f"{run.name}: {line}" if len(runs) > 1 else line for run in runs for line in run.warnings]
    shown = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    note = f'<ul class="warnings" aria-label="Warnings">{shown}</ul>' if shown else ""
    if len(runs) > 1:
        rows = "".join(
            f'<li><i class="swatch" style="--tint: var(--c{index % 8})"></i><b>{escape(run.name)}</b> '
            f"{escape(facts(run))}</li>"
            for index, run in enumerate(runs)
        )
        return f'<h1>{len(runs)} runs compared</h1><ul class="runs">{rows}</ul>{note}'
    (run,) = runs
    figures = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in key_figures(run))
    return (
        f'<h1>{escape(run.name)}</h1><p class="facts">{escape(facts(run))}</p><dl class="figures">{figures}</dl>{note}'
    )


def facts(run: Run) -> str:
    """`task text · model gpt · 600 steps · finished`."""
    named = {"task": "task_name", "model": "model.name", "data": "dataset.name"}
    words = [f"{word} {run.settings[key].text}" for word, key in named.items() if key in run.settings]
    return " · ".join([*words, f"{run.log.last_step:,} steps", "finished" if run.is_finished else "not finished"])


def key_figures(run: Run) -> list[tuple[str, str]]:
    found = []
    for name in ("loss", "eval_loss"):
        if name in run.log.series and (low := run.log.summary(name)["low"]):
            found.append((f"lowest {name}", f"{number(low[1])} <small>step {low[0]:,}</small>"))
    rated: dict[str, tuple[Any, Any, Any]] = {}
    for scores in run.scores.values():
        rated = scores | rated  # of several files with a score, the first
    best = run.settings["metric_for_best_model"].text if "metric_for_best_model" in run.settings else ""
    order = sorted(rated, key=lambda key: (rated[key][1] is None, key not in best, key.startswith("loss")))
    found += [(key, score(key, *rated[key])) for key in order[:2]]
    if total := run.adaptation.get("total"):
        found.append(("parameters", number(total.get("parameters", "–")) if isinstance(total, dict) else "–"))
    if hours := run.log.axes["hours"]:
        minutes = hours[-1][1] * 60
        found.append(("training time", f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.1f} min"))
    return found


# ---- tables ----


def table(names: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """An HTML table in a box that scrolls; cells are HTML, names are text."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f'<td data-name="{escape(name)}">{cell}</td>' for name, cell in zip(names[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def score(name: str, value: Any, low: Any, high: Any) -> str:
    """A score with its interval; a rate in percent."""

    def shown(each: Any) -> str:
        return f"{each:.1%}" if name.endswith("_rate") and isinstance(each, (int, float)) else number(each)

    return shown(value) + (f" <small>{shown(low)} – {shown(high)}</small>" if None not in (low, high) else "")


def scores_table(runs: Sequence[Run]) -> str:
    """Scores of eval.py and the like, of one run a column for each file; then what was logged."""
    if len(runs) == 1:
        columns = {
            file: {(key, ""): values for key, values in scores.items()} for file, scores in runs[0].scores.items()
        }
    else:
        columns = {run.name: scores_with_files(run) for run in runs}
    rows = [
        [f"{escape(key)} <small>{escape(file)}</small>" if file else escape(key)]
        + [score(key, *scores[key, file]) if (key, file) in scores else "–" for scores in columns.values()]
        for key, file in dict.fromkeys(row for scores in columns.values() for row in scores)
    ]
    found = table(["score", *columns], rows, "numbers") if rows else ""
    logged = list(dict.fromkeys(name for run in runs for name in run.log.series))
    if not logged:
        return found
    if len(runs) == 1:
        cells = [[escape(name), *logged_row(runs[0], name)] for name in logged]
        values = table(["logged value", "last", "lowest", "highest"], cells)
    else:
        cells = [[escape(name), *(logged_row(run, name)[0] for run in runs)] for name in logged]
        values = table(["last logged value", *columns], cells, "numbers")
    is_open = len(runs) > 1 or not rows
    return f"{found}<details{' open' if is_open else ''}><summary>Logged values</summary>{values}</details>"


def scores_with_files(run: Run) -> dict[tuple[str, str], tuple[Any, Any, Any]]:
    """(score, file) -> value, low, high; a value that several files have stands once."""
    found: dict[tuple[str, str], tuple[Any, Any, Any]] = {}
    for file, scores in run.scores.items():
        for key, values in scores.items():
            if (key, values[0]) not in {(name, other[0]) for (name, _), other in found.items()}:
                found[key, file] = values
    return found


def logged_row(run: Run, name: str) -> list[str]:
    points = run.log.summary(name).values() if name in run.log.series else [None]
    return [f"{number(point[1])} <small>step {point[0]:,}</small>" if point else "–" for point in points]


def value_cell(setting: Setting | None) -> str:
    return "–" if setting is None else f"<code>{escape(clipped(setting.text))}</code>"


def configuration(run: Run) -> str:
    """What differs from the defaults, and all values in a second table."""
    if not run.settings:
        return ""

    def rows(settings: Mapping[str, Setting]) -> str:
        cells = [
            [f"<code>{escape(path)}</code>", value_cell(each)]
            + [f"<code>{escape(clipped(each.default))}</code>" if each.default is not None else "–"]
            + [f'<span class="origin">{escape(each.origin)}</span>']
            for path, each in settings.items()
        ]
        return table(["key", "value", "default", "origin"], cells, "config")

    changed = {path: setting for path, setting in run.settings.items() if setting.differs}
    return (
        f"<p>{len(changed)} of {len(run.settings)} values differ from the defaults.</p>{rows(changed)}"
        '<details><summary>All values</summary><label class="field">Filter <input class="filter" type="search"></label>'
        f"{rows(run.settings)}</details>"
    )


def differences_table(runs: Sequence[Run]) -> str:
    rows = [
        [f"<code>{escape(path)}</code>"]
        + [f'{value_cell(each)} <span class="origin">{escape(each.origin) if each else ""}</span>' for each in settings]
        for path, settings in differences(runs).items()
    ]
    if not rows:
        return "<p>The configurations are equal.</p>"
    return table(["key", *(run.name for run in runs)], rows, "config compared")


def model(run: Run) -> str:
    """The adaptation table, and what was chosen."""
    described, lines = run.adaptation, lines_of(run, "model")
    sections = described.get("parts") if isinstance(described.get("parts"), dict) else {}
    entries = {
        name: row for name, row in [*sections.items(), ("total", described.get("total"))] if isinstance(row, dict)
    }
    cells = []
    for name, row in entries.items():
        rates = row.get("learning_rate") if isinstance(row.get("learning_rate"), list) else []
        shown = [f"{rate:g}" if isinstance(rate, (int, float)) else str(rate) for rate in rates]
        if len(shown) > 3:
            shown = [f"{shown[0]} … {shown[-1]}"]
        counts = [number(row[key]) if row.get(key) else "–" for key in (*COUNTS, "bytes")]
        cells.append([escape(str(name)), *counts, escape(", ".join(shown)) or "–"])
    chosen = "".join(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in run.effective.items())
    rows = table(["part", *COUNTS, "bytes", "learning rate"], cells, "numbers") if cells else ""
    return rows + lines + (f'<ul class="plain">{chosen}</ul>' if chosen else "")


def lines_of(run: Run, key: str) -> str:
    """Lines that the latest start printed."""
    lines = run.starts[-1].get(key) if run.starts else None
    items = "".join(f"<li>{escape(str(line))}</li>" for line in lines) if isinstance(lines, list) else ""
    return f'<ul class="plain">{items}</ul>' if items else ""


def history(run: Run) -> str:
    """Each start of the run, with what it said, and what a resume changed."""
    starts = run.starts or [{"step": entry.get("step")} for entry in run.resumed]
    items = []
    for start in starts:
        step = start.get("step")
        said = [str(line) for key in ("notes", "resumed", "changed") for line in as_list(start.get(key))]
        changed = next((each.get("changed") for each in reversed(run.resumed) if each.get("step") == step), None)
        for path, change in changed.items() if isinstance(changed, dict) else ():
            if isinstance(change, dict) and not any(path in line for line in said):
                before, after = (clipped(str(change.get(key))) for key in ("before", "after"))
                said.append(f"{path}: {before} → {after} ({change.get('origin')})")
        what = f"resumed at step {step}" if step else "started"
        lines = "".join(f"<li>{escape(line)}</li>" for line in said)
        items.append(
            f"<li><b>{escape(what)}</b> <time>{escape(str(start.get('time', '')))}</time><ul>{lines}</ul></li>"
        )
    return f'<ol class="history">{"".join(items)}</ol>' if items else ""


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def samples(run: Run) -> str:
    """Texts by the model, the latest first."""
    items = []
    for sample in reversed(run.samples):
        loss = sample.get("eval_loss")
        where = f"step {sample.get('step')}" if "source" not in sample else str(sample["source"])
        about = where + (f", evaluation loss {loss:.4g}" if isinstance(loss, (int, float)) else "")
        items.append(
            f"<figure><figcaption>{escape(about)}</figcaption><pre>{escape(clipped(sample['text']))}</pre></figure>"
        )
    first, rest = "".join(items[:3]), "".join(items[3:])
    return first + (f"<details><summary>{len(items) - 3} earlier</summary>{rest}</details>" if rest else "")


def clipped(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} …"


def media(run: Run, budget: int) -> str:
    """Films and pictures, embedded as long as they fit into the budget, in bytes of base64."""
    items, left_out = [], []
    for path in sorted(run.media, key=lambda path: (path.suffix.lower() not in (".mp4", ".webm"), path)):
        try:
            size = (run.folder / path).stat().st_size
            if size * 4 / 3 > budget:
                left_out.append(f"{path} ({size / 1e6:.1f} MB)")
                continue
            content = base64.b64encode((run.folder / path).read_bytes()).decode()
        except OSError as error:
            left_out.append(f"{path} ({error.strerror})")
            continue
        budget -= len(content)
        kind, name = MEDIA[path.suffix.lower()], escape(str(path))
        source = f"data:{kind};base64,{content}"
        shown = (
            f'<video controls loop muted playsinline preload="metadata" src="{source}" aria-label="{name}"></video>'
            if kind.startswith("video")
            else f'<button type="button" class="enlarge"><img loading="lazy" src="{source}" alt="{name}"></button>'
        )
        items.append(f"<figure>{shown}<figcaption>{name}</figcaption></figure>")
    names = ", ".join(left_out[:MOST_NAMES]) + (
        f" and {len(left_out) - MOST_NAMES:,} more" if len(left_out) > MOST_NAMES else ""
    )
    more = f"<p>Not embedded, for the size of the page: {escape(names)}</p>" if left_out else ""
    return (f'<div class="media">{"".join(items)}</div>' if items else "") + more
