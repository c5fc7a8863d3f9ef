// The lanes: drawn on a canvas once for each change of view or marks; the playhead is an element of its own above it.
// From the top: times, suggested and reviewed stretches, then for each label its score, and annotated, predicted and reviewed spans.

import { isOn } from "./marks.js";

const GUTTER_PX = 124;
const RULER_PX = 32;
const ROW_PX = 50;
const LANES = { score: [4, 18], annotated: [20, 24], predicted: [26, 30], marks: [33, 46] }; // of a label's row
const BORDER_PX = 5; // within which the pointer takes hold of a border
const SHORTEST_US = 400_000;
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];

export function clock(time_us, decimals = 3) {
  const total = Number((time_us / 1e6).toFixed(decimals));
  const pad = (value) => String(value).padStart(2, "0");
  const seconds = (total % 60).toFixed(decimals).padStart(decimals ? 3 + decimals : 2, "0");
  return `${Math.floor(total / 3600)}:${pad(Math.floor(total / 60) % 60)}:${seconds}`;
}

// The first position whose span ends after a time.
function firstAfter(ends, time) {
  let low = 0;
  let high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}

export class Lanes {
  // `on` has seek(time_us), select(item or null), stretch(from_us, to_us), move(mark, side, time_us, done).
  constructor(region, on) {
    this.region = region;
    this.canvas = region.querySelector("canvas");
    this.playhead = region.querySelector("#playhead");
    this.on = on;
    this.recording = null;
    this.time_us = 0;
    new ResizeObserver(() => this.draw()).observe(region);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointerdown", (event) => this.onDown(event));
    this.canvas.addEventListener("pointermove", (event) => this.onHover(event));
    region.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
  }

  open(recording) {
    this.recording = recording;
    const { clips } = recording;
    this.curve = null;
    if (clips) {
      const order = clips.spans_us.map((_, at) => at).sort((a, b) => clips.spans_us[a][0] - clips.spans_us[b][0]);
      const centres = order.map((at) => (clips.spans_us[at][0] + clips.spans_us[at][1]) / 2);
      this.curve = { order, centres };
    }
    this.from = 0;
    this.to = Math.min(recording.duration_us, 60_000_000);
  }

  show(marks, proposals, selected, stretch) {
    Object.assign(this, { marks, proposals, selected, stretch });
    this.draw();
  }

  get span() { return this.to - this.from; }
  get width() { return this.canvas.clientWidth - GUTTER_PX; }
  x(time_us) { return GUTTER_PX + ((time_us - this.from) / this.span) * this.width; }
  time(x) { return Math.min(this.recording.duration_us, Math.max(0, this.from + ((x - GUTTER_PX) / this.width) * this.span)); }

  view(from_us, to_us) {
    const length = Math.min(this.recording.duration_us, Math.max(SHORTEST_US, to_us - from_us));
    this.from = Math.min(Math.max(0, from_us), this.recording.duration_us - length);
    this.to = this.from + length;
    this.draw();
  }

  zoom(factor, around_us) {
    this.view(around_us - (around_us - this.from) * factor, around_us + (this.to - around_us) * factor);
  }

  // Brings a stretch into view, with some time about it.
  reveal(from_us, to_us) {
    if (from_us >= this.from && to_us <= this.to) return;
    const length = Math.max(this.span, (to_us - from_us) * 1.4);
    const middle = (from_us + to_us) / 2;
    this.view(middle - length / 2, middle + length / 2);
  }

  head(time_us, isPlaying) {
    this.time_us = time_us;
    if (!this.recording) return;
    if (isPlaying && (time_us > this.to || time_us < this.from)) this.view(time_us, time_us + this.span);
    const x = this.x(time_us);
    this.playhead.hidden = x < GUTTER_PX || x > GUTTER_PX + this.width + 1;
    this.playhead.style.transform = `translateX(${x}px)`;
  }

  draw() {
    if (!this.recording || !this.marks) return;
    const { labels } = this.recording;
    const height = RULER_PX + ROW_PX * Math.max(1, labels.length);
    const ratio = devicePixelRatio || 1;
    const width = this.region.clientWidth;
    this.canvas.style.height = `${height}px`;
    this.playhead.style.height = `${height}px`;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const paper = this.canvas.getContext("2d");
    paper.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    this.color = (name) => style.getPropertyValue(`--${name}`).trim();
    this.paper = paper;
    paper.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    paper.save();
    paper.beginPath();
    paper.rect(GUTTER_PX, 0, this.width, height);
    paper.clip();
    this.drawTimes(height);
    labels.forEach((label, row) => this.drawRow(label, RULER_PX + ROW_PX * row));
    this.drawStretch(height);
    paper.restore();
    labels.forEach((label, row) => this.drawName(label, RULER_PX + ROW_PX * row, width));
    this.head(this.time_us, false);
    Object.assign(this.canvas.dataset, { from: this.from, to: this.to, gutter: GUTTER_PX, ruler: RULER_PX, row: ROW_PX });
  }

  drawTimes(height) {
    const step = STEPS_S.find((one) => (this.span / 1e6 / one) * 90 <= this.width) || 14400;
    const { paper } = this;
    for (let at = Math.ceil(this.from / 1e6 / step) * step; at * 1e6 <= this.to; at += step) {
      const x = this.x(at * 1e6);
      this.fill("rule", x, 0, 1, height);
      paper.fillStyle = this.color("muted");
      paper.fillText(clock(at * 1e6, step < 1 ? 1 : 0), x + 4, 13);
    }
    for (const [, start_us, end_us] of this.recording.suggested) this.bar({ start_us, end_us }, "c3", RULER_PX - 14, RULER_PX - 10);
    for (const one of this.marks) if (one.how === "reviewed") this.bar(one, "c4", RULER_PX - 7, RULER_PX - 3);
  }

  drawName(label, top, width) {
    const { paper } = this;
    this.fill("rule", 0, top, width, 1);
    paper.fillStyle = this.color("ink");
    let text = label;
    while (text.length > 1 && paper.measureText(text).width > GUTTER_PX - 22) text = `${text.slice(0, -2)}…`;
    paper.fillText(text, 12, top + 29);
  }

  drawRow(label, top) {
    const { recording } = this;
    this.drawScore(label, top);
    const at = (lane) => [top + LANES[lane][0], top + LANES[lane][1]];
    for (const [start_us, end_us] of (recording.annotated && recording.annotated[label]) || []) {
      this.bar({ start_us, end_us }, "muted", ...at("annotated"));
    }
    for (const [start_us, end_us] of (recording.predicted && recording.predicted[label]) || []) {
      this.bar({ start_us, end_us }, "c0", ...at("predicted"));
    }
    for (const one of this.marks) {
      if (one.label !== label) continue;
      if (one.how === "rejected") this.bar(one, "muted", top + 39, top + 40);
      else if (isOn(one)) this.bar(one, one.how === "annotated" ? "muted" : "c2", ...at("marks"), one.how === "accepted" ? 0.55 : 1);
    }
    for (const one of this.proposals) if (one.label === label) this.outline(one, "c2", ...at("marks"), [4, 3]);
    const { selected } = this;
    if (selected && selected.label === label) this.outline(selected, "ink", top + LANES.marks[0] - 2, top + LANES.marks[1] + 2, []);
  }

  drawScore(label, top) {
    if (!this.curve) return;
    const { order, centres } = this.curve;
    const scores = this.recording.clips.scores[label];
    const [high, low] = [top + LANES.score[0], top + LANES.score[1]];
    const y = (score) => low - score * (low - high);
    const first = Math.max(0, firstAfter(centres, this.from) - 1);
    const last = Math.min(order.length - 1, firstAfter(centres, this.to) + 1);
    const { paper } = this;
    paper.globalAlpha = 0.22;
    paper.fillStyle = this.color("c0");
    paper.beginPath();
    paper.moveTo(this.x(centres[first]), low);
    for (let at = first; at <= last; at += 1) paper.lineTo(this.x(centres[at]), y(scores[order[at]]));
    paper.lineTo(this.x(centres[last]), low);
    paper.fill();
    paper.globalAlpha = 1;
    paper.strokeStyle = this.color("c0");
    paper.lineWidth = 1;
    paper.setLineDash([2, 3]);
    paper.beginPath();
    const threshold = Math.round(y(this.recording.thresholds[label])) + 0.5;
    paper.moveTo(GUTTER_PX, threshold);
    paper.lineTo(GUTTER_PX + this.width, threshold);
    paper.stroke();
    paper.setLineDash([]);
  }

  drawStretch(height) {
    if (!this.stretch) return;
    this.paper.globalAlpha = 0.1;
    this.bar(this.stretch, "ink", 0, height, 0.1);
    this.paper.globalAlpha = 1;
  }

  fill(color, x, y, width, height) {
    this.paper.fillStyle = this.color(color);
    this.paper.fillRect(x, y, width, height);
  }

  bar({ start_us, end_us }, color, top, bottom, alpha = 1) {
    if (end_us < this.from || start_us > this.to) return;
    const x = this.x(start_us);
    this.paper.globalAlpha = alpha;
    this.fill(color, x, top, Math.max(1, this.x(end_us) - x), bottom - top);
    this.paper.globalAlpha = 1;
  }

  outline({ start_us, end_us }, color, top, bottom, dash) {
    if (end_us < this.from || start_us > this.to) return;
    const { paper } = this;
    paper.strokeStyle = this.color(color);
    paper.lineWidth = dash.length ? 1 : 1.5;
    paper.setLineDash(dash);
    paper.strokeRect(this.x(start_us) + 0.5, top + 0.5, Math.max(2, this.x(end_us) - this.x(start_us)) - 1, bottom - top - 1);
    paper.setLineDash([]);
  }

  // --- the pointer ---------------------------------------------------------------------------------

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  // The mark or proposal below the pointer, and the border of it that can be taken hold of.
  hit([x, y]) {
    const row = Math.floor((y - RULER_PX) / ROW_PX);
    const label = this.recording.labels[row];
    if (x < GUTTER_PX || y < RULER_PX || label === undefined) return null;
    const isPredicted = (y - RULER_PX) % ROW_PX < LANES.predicted[1] && (y - RULER_PX) % ROW_PX >= LANES.predicted[0];
    const predicted = ((this.recording.predicted && this.recording.predicted[label]) || []).map(
      ([start_us, end_us, confidence]) => ({ start_us, end_us, label, how: "proposed", confidence }));
    const items = isPredicted ? predicted : [...this.marks.filter((one) => one.label === label && isOn(one)), ...this.proposals.filter((one) => one.label === label)];
    for (const item of items) {
      const [left, right] = [this.x(item.start_us), this.x(item.end_us)];
      if (x < left - BORDER_PX || x > right + BORDER_PX) continue;
      const side = Math.abs(x - left) <= BORDER_PX ? "start" : Math.abs(x - right) <= BORDER_PX ? "end" : null;
      return { item, side };
    }
    return null;
  }

  onHover(event) {
    if (!this.recording || event.buttons) return;
    const found = this.hit(this.place(event));
    this.canvas.style.cursor = found ? (found.side ? "ew-resize" : "pointer") : "crosshair";
  }

  onDown(event) {
    if (!this.recording || event.button !== 0) return;
    const from = this.place(event);
    if (from[0] < GUTTER_PX) return;
    this.region.focus({ preventScroll: true });
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    const found = this.hit(from);
    let moved = false;
    const onMove = (step) => {
      const at = this.place(step);
      if (!moved && Math.abs(at[0] - from[0]) < 3) return;
      moved = true;
      if (found && found.side) this.on.move(found.item, found.side, this.time(at[0]), false);
      else this.on.stretch(this.time(Math.min(from[0], at[0])), this.time(Math.max(from[0], at[0])));
    };
    const onUp = (step) => {
      this.canvas.removeEventListener("pointermove", onMove);
      if (moved && found && found.side) this.on.move(found.item, found.side, this.time(this.place(step)[0]), true);
      if (moved) return;
      this.on.select(found ? found.item : null);
      this.on.seek(this.time(from[0]));
    };
    this.canvas.addEventListener("pointermove", onMove);
    this.canvas.addEventListener("pointerup", onUp, { once: true });
  }

  onWheel(event) {
    if (!this.recording) return;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.time(this.place(event)[0]));
    } else if (event.deltaX || event.shiftKey) {
      event.preventDefault();
      const by = ((event.deltaX || event.deltaY) / this.width) * this.span;
      this.view(this.from + by, this.to + by);
    }
  }
}
