// Draws the figures, sorts the tables, and moves about the timelines. It reads two JSON blocks of the page, asks
// for nothing, and stores nothing. Plotly does the drawing; colours come from the style sheet by name.
"use strict";
(() => {
  const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
  const FIGURES = parsed("figures");
  const TIMELINES = parsed("timelines-data");
  const CONFIG = { displayModeBar: false, responsive: true };
  const PRINT_PX = { wide: 660, half: 315, panel: 205 };

  // --- figures ---------------------------------------------------------------------------------------

  const COLOR = /^@(c[0-5]|heat|ink|muted|rule|paper|panel)$/;

  function painted(value, style) {
    if (typeof value === "string") {
      const name = COLOR.exec(value);
      return name ? style.getPropertyValue(`--${name[1]}`).trim() : value;
    }
    if (ArrayBuffer.isView(value)) return value;
    if (Array.isArray(value)) return value.map((item) => painted(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, style)]));
    }
    return value;
  }

  function layoutOf(given, width) {
    const axis = { gridcolor: "@rule", linecolor: "@rule", zeroline: false, tickcolor: "@rule", automargin: true };
    const own = getComputedStyle(document.body);
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 50, r: 12, t: 12, b: 42 },
      hoverlabel: { bgcolor: "@panel", bordercolor: "@rule", font: { color: "@ink" } },
      dragmode: false,
      hovermode: "closest",
      ...given,
      font: { family: own.fontFamily, size: 12, color: "@ink", ...given.font },
    };
    layout.xaxis = { ...axis, ...given.xaxis };
    layout.yaxis = { ...axis, ...given.yaxis };
    if (width) Object.assign(layout, { width, autosize: false });
    return layout;
  }

  function draw(element, figure, printing) {
    const style = getComputedStyle(document.documentElement);
    const width = printing ? PRINT_PX[element.dataset.size] || PRINT_PX.wide : undefined;
    const { data, layout } = painted({ data: figure.data, layout: layoutOf(figure.layout, width) }, style);
    return Plotly.react(element, data, layout, CONFIG);
  }

  const plots = [...document.querySelectorAll(".plot[data-figure]")];
  const breath = () => new Promise((done) => setTimeout(done));

  async function drawAll() {
    for (const element of plots) {
      await draw(element, FIGURES[element.dataset.figure], false);
      await breath(); // between two figures the page answers
    }
    document.documentElement.dataset.ready = "true";
  }

  function redrawAll(printing) {
    for (const element of plots) draw(element, FIGURES[element.dataset.figure], printing);
    if (viewer) viewer.draw(printing);
  }

  addEventListener("beforeprint", () => {
    document.documentElement.dataset.theme = "print";
    redrawAll(true);
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.theme;
    setTimeout(() => { // once the page has its own width again, which a figure that was given one does not take
      redrawAll(false);
      dispatchEvent(new Event("resize"));
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redrawAll(false));

  // --- tables ----------------------------------------------------------------------------------------

  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const wasUp = head.getAttribute("aria-sort") === "ascending";
      const sign = wasUp ? -1 : 1;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", wasUp ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[head.cellIndex];
        return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value || NaN);
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (typeof a === "string" || typeof b === "string") return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // what is missing stays last
        return sign * (a - b);
      });
      body.append(...rows.map(([, row]) => row));
    });
  }

  // --- timelines -------------------------------------------------------------------------------------

  const LANES = [ // of a label's row, which is one unit high
    { key: "annotated", from: 0.38, to: 0.6, color: "@muted" },
    { key: "predicted", from: 0.64, to: 0.86, color: "@c0" },
    { key: "differ", from: 0.9, to: 0.96, color: "@c1" },
  ];
  const ROW_PX = 52;
  const SHORTEST_S = 2;
  const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];

  const plain = (text) => `\u2068${text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;")}\u2069`;

  function clock(time_s, decimals = 0) {
    const total = Number(time_s.toFixed(decimals));
    const pad = (value) => String(value).padStart(2, "0");
    const seconds = (total % 60).toFixed(decimals).padStart(decimals ? 3 + decimals : 2, "0");
    return `${Math.floor(total / 3600)}:${pad(Math.floor(total / 60) % 60)}:${seconds}`;
  }

  // The first span that ends after a time.
  function firstAfter(spans_us, time_us) {
    let low = 0;
    let high = spans_us.length / 2;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (spans_us[2 * middle + 1] <= time_us) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function isOn(spans_us, time_us) {
    const found = firstAfter(spans_us, time_us);
    return 2 * found < spans_us.length && spans_us[2 * found] <= time_us ? found : -1;
  }

  // One outline for all spans of a lane that can be seen; those less than a pixel apart are drawn as one. So a picture
  // costs what its width allows, whatever the length of the recording.
  function outline(spans_us, row, lane, [from_s, to_s], pixel_s) {
    const seen = [];
    for (let at = 2 * firstAfter(spans_us, from_s * 1e6); at < spans_us.length && spans_us[at] < to_s * 1e6; at += 2) {
      const start = spans_us[at] / 1e6;
      const end = spans_us[at + 1] / 1e6;
      const last = seen[seen.length - 1];
      if (last && start - last[1] < pixel_s) last[1] = end;
      else seen.push([start, end]);
    }
    return {
      type: "scatter", mode: "none", fill: "toself", fillcolor: lane.color, hoverinfo: "skip",
      x: seen.flatMap(([start, end]) => [start, start, end, end]),
      y: seen.flatMap(() => [row + lane.to, row + lane.from, row + lane.from, row + lane.to]),
    };
  }

  class Viewer {
    constructor(region) {
      this.region = region;
      this.plot = region.querySelector(".plot");
      this.hair = region.querySelector(".hair");
      this.choice = document.getElementById("timeline-recording");
      this.position = document.getElementById("timeline-position");
      this.status = document.getElementById("timeline-status");
      this.readout = document.getElementById("timeline-readout");
      this.index = 0;
      this.mark = null;
      this.choice.addEventListener("change", () => this.open(Number(this.choice.value)));
      this.position.addEventListener("input", () => this.centre(Number(this.position.value)));
      for (const button of document.querySelectorAll("[data-act]")) {
        button.addEventListener("click", () => this.act(button.dataset.act));
      }
      for (const button of document.querySelectorAll("[data-goto]")) {
        button.addEventListener("click", () => this.goto(button));
      }
      for (const button of document.querySelectorAll("[data-open]")) {
        button.addEventListener("click", () => {
          this.open(Number(button.dataset.open));
          this.reveal();
        });
      }
      region.addEventListener("keydown", (event) => this.onKey(event));
      region.addEventListener("pointermove", (event) => this.onPointer(event));
      region.addEventListener("pointerleave", () => this.leave());
    }

    get timeline() { return TIMELINES[this.index]; }
    get duration_s() { return this.timeline.duration_us / 1e6; }

    async open(index, range) {
      this.index = index;
      this.mark = range ? this.mark : null;
      this.range = range || [0, this.duration_s];
      this.choice.value = String(index);
      this.position.max = String(this.duration_s);
      await this.draw(false);
      this.tell();
    }

    async draw(printing) {
      const { labels } = this.timeline;
      const pixel_s = (this.range[1] - this.range[0]) / (this.region.clientWidth || 800);
      const lane_of_all = { from: 0, to: Math.max(1, labels.length), color: "@panel" };
      const data = [
        outline(this.timeline.unknown, 0, lane_of_all, this.range, pixel_s),
        ...labels.flatMap((label, row) =>
          LANES.map((lane) => outline(label[lane.key] || [], row, lane, this.range, pixel_s))),
      ];
      const layout = {
        height: 44 + ROW_PX * Math.max(1, labels.length),
        margin: { l: 8, r: 8, t: 4, b: 36 },
        xaxis: { range: [...this.range], ...this.ticks(), showgrid: true, automargin: false },
        yaxis: { range: [Math.max(1, labels.length), 0], fixedrange: true, visible: false },
        showlegend: false,
        hovermode: false,
        dragmode: "zoom",
        shapes: [
          ...labels.slice(1).map((_, row) => this.rule(row + 1)),
          ...(this.mark ? [this.band(this.mark)] : []),
        ],
        annotations: labels.map((label, row) => ({
          xref: "paper", x: 0, xanchor: "left", y: row + 0.02, yanchor: "top", showarrow: false, text: plain(label.name),
          font: { size: 12 },
        })),
      };
      const fresh = !this.plot.on;
      await draw(this.plot, { data, layout }, printing);
      if (fresh) this.plot.on("plotly_relayout", (change) => this.onRelayout(change));
      if (fresh) this.plot.on("plotly_doubleclick", () => this.show(0, this.duration_s));
    }

    rule(y) { return { type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: "@rule", width: 1 }, layer: "below" }; }
    band([start, end]) {
      return { type: "rect", yref: "paper", x0: start, x1: end, y0: 0, y1: 1, fillcolor: "@c4", opacity: 0.22, line: { width: 0 }, layer: "below" };
    }

    ticks() {
      const span = this.range[1] - this.range[0];
      const wanted = Math.max(2, Math.floor((this.region.clientWidth || 800) / 110));
      const step = STEPS_S.find((candidate) => span / candidate <= wanted) || 86400;
      const tickvals = [];
      for (let at = Math.ceil(this.range[0] / step) * step; at <= this.range[1] + 1e-9; at += step) tickvals.push(at);
      return { tickvals, ticktext: tickvals.map((at) => clock(at, step < 1 ? 1 : 0)) };
    }

    async show(start_s, end_s) {
      const length = Math.min(this.duration_s, Math.max(SHORTEST_S, end_s - start_s));
      const start = Math.min(Math.max(0, start_s), this.duration_s - length);
      this.range = [start, start + length];
      await this.draw(false);
      this.tell();
    }

    centre(time_s) { return this.pan(time_s - (this.range[0] + this.range[1]) / 2); }
    pan(by_s) { return this.show(this.range[0] + by_s, this.range[1] + by_s); }
    zoom(factor) {
      const [start, end] = this.range;
      const middle = (start + end) / 2;
      const half = Math.max(SHORTEST_S / 2, ((end - start) * factor) / 2);
      return this.show(middle - half, middle + half);
    }

    act(name) {
      const span = this.range[1] - this.range[0];
      const acts = {
        left: () => this.pan(-span / 4), right: () => this.pan(span / 4), in: () => this.zoom(0.5), out: () => this.zoom(2),
        all: () => this.show(0, this.duration_s), start: () => this.pan(-this.duration_s), end: () => this.pan(this.duration_s),
        next: () => this.step(1), previous: () => this.step(-1),
      };
      return acts[name]();
    }

    onKey(event) {
      const keys = {
        ArrowLeft: "left", ArrowRight: "right", "+": "in", "=": "in", "-": "out", 0: "all", Home: "start", End: "end", n: "next", p: "previous",
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      this.act(keys[event.key]);
    }

    // Plotly tells of a range that the reader dragged.
    onRelayout(change) {
      const start = change["xaxis.range[0]"];
      const end = change["xaxis.range[1]"];
      if (start !== undefined && end !== undefined) this.show(start, end);
    }

    step(by) {
      const rows = [...document.querySelectorAll("#differences tbody tr")];
      if (!rows.length) return;
      const now = rows.findIndex((row) => row.getAttribute("aria-current") === "true");
      const next = rows[Math.min(rows.length - 1, Math.max(0, now + by))];
      this.goto(next.querySelector("[data-goto]"));
    }

    async goto(button) {
      const [index, ...span_us] = button.dataset.goto.split(" ").map(Number);
      const [start, end] = span_us.map((time) => time / 1e6);
      for (const row of document.querySelectorAll("#differences tbody tr[aria-current]")) row.removeAttribute("aria-current");
      const row = button.closest("tr");
      if (row) row.setAttribute("aria-current", "true");
      const pad = Math.max(10, end - start);
      this.mark = [start, end];
      await this.open(index, [Math.max(0, start - pad), Math.min(TIMELINES[index].duration_us / 1e6, end + pad)]);
      this.reveal();
    }

    reveal() {
      this.region.scrollIntoView({ block: "center" });
      this.region.focus({ preventScroll: true });
    }

    at(time_s) {
      const on = (key) => {
        const names = this.timeline.labels.flatMap((label) => {
          const spans = label[key] || [];
          const found = isOn(spans, time_s * 1e6);
          if (found < 0) return [];
          const sure = key === "predicted" ? label.confidence[found] : null;
          return [`\u2068${label.name}\u2069${sure === null ? "" : ` (${sure.toFixed(2)})`}`];
        });
        return names.length ? names.join(", ") : "nothing";
      };
      const annotated = this.timeline.labels.some((label) => label.annotated) ? `annotated ${on("annotated")}; ` : "";
      return `${clock(time_s, 1)}: ${annotated}predicted ${on("predicted")}`;
    }

    tell() {
      const [start, end] = this.range;
      this.position.value = String((start + end) / 2);
      this.position.setAttribute("aria-valuetext", clock((start + end) / 2));
      this.status.textContent = `Shown: ${clock(start)} to ${clock(end)} of ${clock(this.duration_s)}.`;
      this.leave();
    }

    leave() {
      this.hair.style.display = "none";
      this.readout.textContent = `In the middle, ${this.at((this.range[0] + this.range[1]) / 2)}`;
    }

    onPointer(event) {
      const area = this.plot.querySelector(".nsewdrag");
      if (!area) return;
      const box = area.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      if (share < 0 || share > 1) return;
      const outer = this.region.getBoundingClientRect();
      Object.assign(this.hair.style, {
        display: "block", left: `${event.clientX - outer.left}px`, top: `${box.top - outer.top}px`, height: `${box.height}px`,
      });
      this.readout.textContent = `At ${this.at(this.range[0] + share * (this.range[1] - this.range[0]))}`;
    }
  }

  // Served by `featurecache review`, each moment leads to its video. A file on the disk leads nowhere: there the row's
  // recording and time say where to look.
  function leadToVideo(button, index, start_us) {
    const link = document.createElement("a");
    link.href = `./#name=${encodeURIComponent(TIMELINES[index].name)}&t=${start_us / 1e6}`;
    link.textContent = "video";
    button.after(" ", link);
  }
  if (location.protocol === "http:") {
    for (const button of document.querySelectorAll("[data-goto]")) leadToVideo(button, ...button.dataset.goto.split(" ").map(Number));
    for (const button of document.querySelectorAll("[data-open]")) leadToVideo(button, Number(button.dataset.open), 0);
  }

  const region = document.getElementById("timeline-viewer");
  const viewer = region ? new Viewer(region) : null;
  const opened = viewer ? viewer.open(0) : Promise.resolve();
  opened.then(drawAll);
})();
