// Draws the charts of the page with BokehJS, and keeps them up to date while the page is served (`--watch`).
"use strict";
(() => {
  const find = (selector) => document.querySelector(selector);
  const root = document.documentElement;
  const state = { x: "step", log: false, smooth: 0, range: null };
  let data = JSON.parse(find("#data").textContent);
  let charts = [];

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // ---- numbers ----

  function shown(value) {
    if (typeof value !== "number") return value === undefined ? "–" : String(value);
    if (Number.isNaN(value)) return "nan";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e7)) return Number(value.toPrecision(4)).toExponential().replace("e+", "e");
    return Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 7 });
  }

  function ticks(low, high, count, log) {
    if (log) {
      const decades = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1; power++) decades.push(10 ** power);
      const inside = (parts) => decades.flatMap((base) => parts.map((part) => part * base)).filter((at) => at >= low && at <= high);
      const options = [inside([1]), inside([1, 3]), inside([1, 2, 3, 5, 7])];
      const fitting = options.find((values) => values.length >= 3);
      if (fitting) return fitting.filter((_, index) => index % Math.ceil(fitting.length / 6) === 0);
    }
    const rough = (high - low) / count, base = 10 ** Math.floor(Math.log10(rough));
    const step = base * [1, 2, 5, 10].find((factor) => factor * base >= rough);
    const values = [];
    for (let at = Math.ceil(low / step); at * step <= high && values.length < 20; at++) values.push(Number((at * step).toPrecision(10)));
    return values;
  }

  // ---- data ----

  // The value of an axis at a step, interpolated between the logged steps.
  function axisOf(run, step) {
    if (state.x === "step") return step;
    const axis = run.axes[state.x];
    if (!axis) return NaN;
    const [steps, values] = axis;
    let low = 0, high = steps.length - 1;
    if (step <= steps[0]) return steps[0] ? (values[0] * step) / steps[0] : values[0];
    if (step >= steps[high]) return values[high];
    while (high - low > 1) { const middle = (low + high) >> 1; if (steps[middle] <= step) low = middle; else high = middle; }
    return values[low] + ((values[high] - values[low]) * (step - steps[low])) / (steps[high] - steps[low]);
  }

  // Exponential moving average without the bias of its start; a value that is not finite leaves a gap.
  function smoothed(values) {
    let mean = 0, weight = 0;
    return values.map((value) => {
      if (!Number.isFinite(value)) return NaN;
      mean = state.smooth * mean + (1 - state.smooth) * value;
      weight = state.smooth * weight + 1 - state.smooth;
      return mean / weight;
    });
  }

  function linesOf(chart) {
    const lines = [];
    data.runs.forEach((run, index) => chart.names.forEach((name, place) => {
      const series = run.series[name];
      if (!series) return;
      const several = data.runs.length > 1;
      lines.push({
        run, name, series, tint: (several ? index : place) % 8, dashed: several && place > 0,
        label: several ? (chart.names.length > 1 ? `${run.name} ${name}` : run.name) : name,
      });
    }));
    return lines;
  }

  function measure(line) {
    const [steps, values] = line.series;
    line.x = steps.map((step) => axisOf(line.run, step));
    line.raw = values.map((value) => (typeof value === "number" && !(state.log && value <= 0) ? value : NaN));
    line.isSmooth = state.smooth > 0 && steps.length > 30; // a few evaluations would only lag behind
    line.y = line.isSmooth ? smoothed(line.raw) : line.raw;
    line.bad = line.x.filter((_, index) => typeof values[index] === "string");
  }

  function bounds(lines) {
    const all = lines.flatMap((line) => line.x).filter(Number.isFinite);
    let [left, right] = state.range ?? (all.length ? [Math.min(...all), Math.max(...all)] : [0, 1]);  // no line has this axis
    let low = Infinity, high = -Infinity;
    for (const line of lines) line.x.forEach((x, index) => {
      for (const value of [line.y[index], line.raw[index]]) {
        if (x >= left && x <= right && Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
      }
    });
    if (low > high) [low, high] = state.log ? [0.1, 1] : [0, 1];
    if (high - low <= 1e-9 * Math.abs(high)) {  // equal but for rounding, as smoothed constants are
      const by = Math.abs(low) / 10 || 1; [low, high] = state.log ? [low / 2, high * 2] : [low - by, high + by];
    }
    const pad = state.log ? (high / low) ** 0.05 : (high - low) * 0.06;
    if (left === right) [left, right] = [left - 1, right + 1];
    const side = state.range ? 0 : (right - left) * 0.02;
    return { x: [left - side, right + side], y: state.log ? [low / pad, high * pad] : [low - pad, high + pad] };
  }

  // ---- charts ----

  async function draw(chart) {
    const lines = (chart.lines = linesOf(chart));
    lines.forEach(measure);
    const { x, y } = bounds(lines), { Plotting, Models } = Bokeh;
    const figure = new Plotting.Figure({
      x_range: x, y_range: y, y_axis_type: state.log ? "log" : "linear", height: 210, sizing_mode: "stretch_width", tools: [],
      toolbar_location: null, min_border: 4, background_fill_color: null, border_fill_color: null, outline_line_color: null,
    });
    for (const [axis, grid, range, count, log] of [[figure.xaxis, figure.xgrid, x, 5, false], [figure.yaxis, figure.ygrid, y, 6, state.log]]) {
      const values = ticks(...range, count, log), ticker = new (Models.get("FixedTicker"))({ ticks: values });
      Object.assign(axis, {
        ticker, major_label_overrides: new Map(values.map((at) => [at, shown(at)])),
        axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null, major_label_text_color: color("--soft"),
        major_label_text_font_size: "11px", major_label_text_font: "system-ui, sans-serif",
      });
      Object.assign(grid, { ticker, grid_line_color: color("--grid") });
    }
    figure.xgrid.grid_line_color = null;
    const source = (columns) => new (Models.get("ColumnDataSource"))({ data: columns });
    const at = [{ field: "x" }, { field: "y" }];
    const marks = (places, options) => places.length && figure.vspan({ field: "x" }, { source: source({ x: places }), ...options });
    marks(data.runs.length === 1 ? data.runs[0].resumes.map((step) => axisOf(data.runs[0], step)) : [], { line_color: color("--soft"), line_dash: "dotted" });
    for (const line of lines) {
      const tint = { line_color: color(`--c${line.tint}`), line_dash: line.dashed ? "dashed" : "solid", line_join: "round" };
      marks(line.bad, { line_color: color("--bad"), line_alpha: 0.6, line_width: 1 });
      if (line.isSmooth) figure.line(...at, { source: source({ x: line.x, y: line.raw }), line_alpha: 0.35, ...tint });
      figure.line(...at, { source: source({ x: line.x, y: line.y }), line_width: 1.8, ...tint });
      if (line.x.length <= 30) figure.scatter(...at, { source: source({ x: line.x, y: line.y }), size: 5, fill_color: tint.line_color, line_color: null });
    }
    chart.cursor = source({ x: [] });
    figure.vspan({ field: "x" }, { source: chart.cursor, line_color: color("--soft"), line_width: 1 });
    if (!matchMedia("(pointer: coarse)").matches) {  // a finger scrolls
      figure.add_tools(new (Models.get("BoxSelectTool"))({ dimensions: "width", renderers: [] }));
      figure.on_event("selectiongeometry", (event) => event.final && setRange([event.geometry.x0, event.geometry.x1]));
      figure.on_event("doubletap", () => setRange(null));
    }
    figure.on_event("mousemove", (event) => read(chart, event.x));
    figure.on_event("mouseleave", () => read(chart, null));
    figure.on_event("tap", (event) => read(chart, event.x));
    read(chart, null);
    chart.isDrawing = true;
    chart.view?.remove();
    chart.plot.replaceChildren();
    chart.view = await Plotting.show(figure, chart.plot);
    chart.isDrawing = false;
    if (chart.isOld && chart.isVisible) refresh(chart);
  }

  // Show the values of all lines at a place of the horizontal axis; null: the last ones.
  function read(chart, x) {
    const nearest = (line) => line.x.reduce((best, at, index) => (Math.abs(at - x) < Math.abs(line.x[best] - x) ? index : best), 0);
    const places = chart.lines.map((line) => (x === null ? line.x.length - 1 : nearest(line)));
    chart.at = x;
    chart.cursor.data = { x: x === null ? [] : [chart.lines[0].x[places[0]]] };
    chart.legend.replaceChildren(...chart.lines.map((line, index) => {
      const value = line.series[1][places[index]];
      const swatch = element("i", { class: `swatch${line.dashed ? " dashed" : ""}`, style: `--tint: var(--c${line.tint})` });
      const label = line.label === chart.title && chart.lines.length === 1 ? "" : `${line.label} `;
      return element("span", {}, swatch, label, element("b", {}, shown(value)), x === null ? "" : ` at ${shown(line.x[places[index]])}`);
    }));
    chart.figure.setAttribute("aria-label", `${chart.title}: ${chart.legend.textContent}`);
  }

  function move(chart, key) {
    const line = chart.lines[0], [left, right] = state.range ?? [-Infinity, Infinity];
    const inside = line.x.filter((x) => x >= left && x <= right);
    const now = chart.at === null ? inside.length : inside.findIndex((x) => x >= chart.at);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: inside.length - 1, Escape: null }[key];
    if (next === undefined || !inside.length) return false;
    read(chart, next === null ? null : inside[Math.max(0, Math.min(inside.length - 1, next))]);
    return true;
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const chart = charts.find((each) => each.figure === target);
      if (!chart) continue;
      chart.isVisible = isIntersecting;
      if (isIntersecting && chart.isOld) refresh(chart);
    }
  }, { rootMargin: "300px" });

  function refresh(chart) {
    chart.isOld = !chart.isVisible || Boolean(chart.isDrawing);
    if (!chart.isOld) draw(chart);
  }
  const refreshAll = () => charts.forEach(refresh);

  function build() {
    const groups = new Map();
    watcher.disconnect();
    charts = data.charts.map((chart) => {
      const legend = element("div", { class: "legend", "aria-live": "polite" }), plot = element("div", { class: "plot" });
      const figure = element("figure", { class: "chart", tabindex: "0", role: "group" }, element("h3", {}, chart.title), legend, plot);
      const made = { ...chart, legend, plot, figure, isOld: true, isVisible: false };
      figure.addEventListener("keydown", (event) => { if (made.lines && move(made, event.key)) event.preventDefault(); });
      groups.set(chart.group, [...(groups.get(chart.group) ?? []), figure]);
      return made;
    });
    find("#charts").replaceChildren(...[...groups].map(([name, figures]) => {
      const fold = element("details", {}, element("summary", {}, name, element("small", {}, `${figures.length}`)), element("div", { class: "grid" }, ...figures));
      fold.open = name !== "System";
      return fold;
    }));
    if (!charts.length) find("#charts").append(element("p", {}, "No value has been logged twice yet."));
    charts.forEach((chart) => watcher.observe(chart.figure));
    for (const input of document.querySelectorAll("[name=x]")) {
      input.parentElement.hidden = input.value !== "step" && !data.runs.some((run) => run.axes[input.value]);
    }
  }

  function setRange(range) {
    state.range = range;
    [find("#from").value, find("#to").value] = range ? range.map((value) => Number(value.toPrecision(6))) : ["", ""];
    refreshAll();
  }

  // ---- controls ----

  find("#controls").addEventListener("submit", (event) => event.preventDefault());
  find("#controls").addEventListener("change", (event) => {
    const { name, value } = event.target;
    if (name === "x") { state.x = value; setRange(null); }
    if (name === "scale") { state.log = value === "log"; refreshAll(); }
    if (event.target.type === "number") {
      const [from, to] = ["#from", "#to"].map((id) => find(id).value);
      const range = [from === "" ? 0 : Number(from), to === "" ? Math.max(...charts.flatMap((chart) => linesOf(chart)).map((line) => axisOf(line.run, line.series[0].at(-1))).filter(Number.isFinite)) : Number(to)];
      if (range[0] < range[1]) setRange(range);
    }
  });
  find("#smooth").addEventListener("input", (event) => {
    state.smooth = Number(event.target.value);
    find("#smooth-value").textContent = event.target.value;
    refreshAll();
  });
  find("#reset").addEventListener("click", () => setRange(null));
  document.addEventListener("click", ({ target }) => target.closest(".enlarge")?.parentElement.classList.toggle("large"));
  document.addEventListener("input", ({ target }) => {
    if (!target.matches(".filter")) return;
    for (const row of target.closest("details").querySelectorAll("tbody tr")) row.hidden = !row.textContent.includes(target.value);
  });

  const dark = matchMedia("(prefers-color-scheme: dark)");
  function setTheme(name) { root.dataset.theme = name; refreshAll(); }
  find("#theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));

  // ---- live ----

  let hashes = {};
  const shownParts = new Map([...find("#parts").children].map((section) => [section.id, section.outerHTML]));

  // Replace the sections that have changed; what was opened stays open, and what was filtered stays so.
  function update(html) {
    const made = element("template");
    made.innerHTML = html;
    for (const section of [...made.content.children]) {
      const before = document.getElementById(section.id), text = section.outerHTML;
      if (before && shownParts.get(section.id) === text) continue;
      shownParts.set(section.id, text);
      if (!before) { find("#parts").append(section); continue; }
      const opened = [...before.querySelectorAll("details")].map((fold) => fold.open);
      const filters = [...before.querySelectorAll(".filter")].map((input) => input.value);
      before.replaceWith(section);
      section.querySelectorAll("details").forEach((fold, index) => { fold.open = opened[index] ?? fold.open; });
      section.querySelectorAll(".filter").forEach((input, index) => {
        input.value = filters[index] ?? "";
        input.dispatchEvent(new Event("input", { bubbles: true }));
      });
    }
  }

  async function poll() {
    try {
      const answer = await fetch(`data.json?${new URLSearchParams(hashes)}`);
      if (answer.ok) {
        const latest = await answer.json(), before = JSON.stringify(data.charts);
        hashes = latest.hashes;
        if (latest.parts !== undefined) update(latest.parts);
        if (latest.head !== undefined) find("#head").innerHTML = latest.head;
        if (latest.data !== undefined) {
          data = latest.data;
          if (JSON.stringify(data.charts) === before) refreshAll(); else build();
        }
      }
      setTimeout(poll, 2000);
    } catch {
      find("#head").append(element("p", { class: "hint" }, "The server of this page has stopped: the curves are no longer updated."));
    }
  }

  setTheme(dark.matches ? "dark" : "light");
  build();
  if (document.body.dataset.live === "true") setTimeout(poll, 2000);
})();
