// The page: which recording is open, what is selected, the video, and the keys. Every change is sent at once; what was
// saved is what the server says it holds.

import { Lanes, clock } from "./lanes.js";
import { Player } from "./player.js";
import { Recordings, countedMarks, minutes, sources } from "./recordings.js";
import { Saver } from "./saver.js";
import * as edit from "./marks.js";

const the = (id) => document.getElementById(id);
const NEW_MARK_US = 1_000_000;

let recording = null; // what the server told of the open one
let selected = null; // a mark or a proposal
let stretch = null; // {start_us, end_us}
let draft = null; // marks while a border is dragged
let past = [];
let future = [];

async function ask(path, options) {
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error), { status: answer.status });
  return found;
}

const player = new Player(the("video"), the("screen-note"), ask, onTime);
const saver = new Saver(ask, onSaved);
const lanes = new Lanes(the("lanes"), {
  seek: (time_us) => player.seek(time_us),
  select: (item) => select(item),
  stretch(start_us, end_us) {
    selected = null;
    stretch = { start_us: Math.round(start_us), end_us: Math.round(end_us) };
    draw();
  },
  move: (item, side, time_us, done) => moveBorder(item, side, time_us, done),
});

// --- recordings --------------------------------------------------------------------------------------

const recordings = new Recordings(the("recordings"), (id) => open(id, false).catch(fail));

async function open(id, blind, time_us = 0) {
  await saver.settled();
  const found = await ask(`api/recordings/${id}${blind ? "?blind=1" : ""}`);
  recording = found;
  [selected, stretch, draft, past, future] = [null, null, null, [], []];
  the("alert").hidden = true;
  saver.open(`api/recordings/${id}${blind ? "?blind=1" : ""}`, found.version);
  the("title").textContent = found.name;
  the("blind").checked = found.blind;
  the("caution").textContent = found.split === "test" && !found.blind
    ? "A test session: what is corrected with the prediction in sight is never used to score. Review it blind instead." : "";
  the("labels").replaceChildren(...found.labels.map((label, at) => {
    const button = document.createElement("button");
    button.type = "button";
    const key = document.createElement("kbd");
    key.textContent = at < 9 ? String(at + 1) : "";
    button.append(label, key);
    button.addEventListener("click", () => add(at));
    return button;
  }));
  lanes.open(found);
  recordings.current = found.id;
  recordings.draw();
  draw();
  await player.open(found, time_us);
  document.documentElement.dataset.ready = found.id;
}

the("blind").addEventListener("change", () => {
  the("lanes").focus({ preventScroll: true }); // so that the keys are the page's again
  open(recording.id, the("blind").checked, player.time_us).catch(fail);
});
the("reload").addEventListener("click", () => open(recording.id, recording.blind, player.time_us).catch(fail));

the("sample").addEventListener("click", async () => {
  try {
    await goToStretch(await ask("api/sample"), true);
  } catch (error) {
    fail(error);
  }
});

async function goToStretch({ id, start_us, end_us }, blind) {
  player.pause();
  if (!recording || recording.id !== id || recording.blind !== blind) await open(id, blind, start_us);
  player.seek(start_us);
  selected = null;
  stretch = { start_us, end_us };
  lanes.reveal(start_us, end_us);
  draw();
  the("lanes").focus({ preventScroll: true });
}

function suggested() {
  const found = recordings.nextSuggested();
  if (found) goToStretch(found, recording.blind).catch(fail);
}

// --- training again ----------------------------------------------------------------------------------

const score = ({ macro_f1, macro_f1_ci95 }) =>
  macro_f1 === null ? "undefined" : `${macro_f1.toFixed(2)}${macro_f1_ci95 ? ` (${macro_f1_ci95.map((one) => one.toFixed(2)).join(" to ")})` : ""}`;
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

function outcome({ before, after, comparison, clips, sessions, reviewed_clips }) {
  const { difference, difference_ci95, reason } = comparison;
  const interval = difference_ci95 ? ` (95% ${difference_ci95.map(signed).join(" to ")})` : reason ? " (no interval: too few sessions)" : "";
  the("retrained").title =
    `Out-of-fold macro-F1 on ${clips} clips of ${sessions} sessions that were labelled without sight of predictions; ` +
    `${reviewed_clips} clips reviewed with predictions in sight train and are not scored.`;
  return `macro-F1 ${score(before)} → ${score(after)}${difference === null ? "" : `, ${signed(difference)}${interval}`}`;
}

the("retrain").addEventListener("click", async () => {
  const button = the("retrain");
  button.disabled = true;
  the("retrained").textContent = "Training again …";
  try {
    await saver.settled();
    let found = await ask("api/retrain", { method: "POST" });
    while (found.state === "running") {
      await new Promise((done) => setTimeout(done, 500));
      found = await ask("api/retrain");
    }
    the("retrained").textContent = "";
    if (found.state === "failed") throw new Error(found.error);
    the("retrained").textContent = outcome(found.result);
    recordings.show((await ask("api/recordings")).recordings);
    if (recording) await open(recording.id, recording.blind, player.time_us);
  } catch (error) {
    fail(error);
  } finally {
    button.disabled = false;
  }
});

// --- what is decided ---------------------------------------------------------------------------------

const marks = () => draft || recording.marks;

function change(next, chosen = null) {
  past.push(recording.marks);
  future = [];
  put(next, chosen);
}

function put(next, chosen = null) {
  recording.marks = next;
  draft = null;
  selected = chosen;
  if (chosen) stretch = null;
  draw();
  saver.save(next);
}

function undo() {
  if (!past.length) return;
  future.push(recording.marks);
  put(past.pop());
}

function redo() {
  if (!future.length) return;
  past.push(recording.marks);
  put(future.pop());
}

function onSaved(state, found) {
  the("saved").textContent = { saving: "Saving …", saved: "All changes saved", failed: "Not saved" }[state];
  document.documentElement.dataset.saved = state;
  if (state === "failed") fail(found);
  if (state === "saved") {
    recording.marks = found; // now with who and when
    recordings.saved(recording.id, found, recording.blind);
  }
}

function fail(error) {
  const lost = error instanceof TypeError && /fetch|load failed/i.test(error.message); // as browsers say that nobody answers
  the("alert-text").textContent = lost
    ? "The server does not answer. What was saved is safe; this last change is not: start featurecache review again." : error.message;
  the("alert").hidden = false;
}

function select(item) {
  selected = item;
  if (item) stretch = null;
  draw();
}

const chosenSpan = () => stretch || (selected && { start_us: selected.start_us, end_us: selected.end_us });

function accept() {
  if (!selected || selected.how !== "proposed") return;
  const next = edit.accept(recording.marks, selected);
  change(next, next.find((one) => one.label === selected.label && one.how === "accepted" && one.end_us > selected.start_us));
}

function reject() {
  if (!selected) return;
  change(selected.how === "proposed" ? edit.reject(recording.marks, selected) : edit.remove(recording.marks, selected));
}

function reviewed() {
  const now = Math.max(player.time_us, 0);
  const span = chosenSpan() || { start_us: edit.reviewedUntil(recording.marks, now), end_us: now };
  if (span.end_us - span.start_us >= 1000) change(edit.review(recording.marks, recording, span));
}

function add(at) {
  const label = recording.labels[at];
  if (label === undefined) return;
  const now = Math.round(player.time_us);
  const span = chosenSpan() || { start_us: now, end_us: Math.min(recording.duration_us, now + NEW_MARK_US) };
  const next = edit.add(recording.marks, label, span);
  change(next, next.find((one) => one.label === label && one.how === "added" && one.start_us <= span.start_us + 1000 && one.end_us >= span.end_us - 1000));
}

function moveBorder(item, side, time_us, done) {
  const marked = item.how === "proposed" ? edit.accept(recording.marks, item) : recording.marks;
  const own = item.how === "proposed" ? marked.find((one) => one.label === item.label && edit.isOn(one) && Math.abs(one.start_us - item.start_us) <= 1000) : item;
  const found = edit.moved(marked, own, side, time_us);
  if (!found) return;
  if (done) change(found.marks, found.mark);
  else {
    draft = found.marks;
    selected = found.mark;
    draw();
    player.seek(time_us);
  }
}

function goTo(direction) {
  const now = player.time_us;
  const all = edit.targets(recording, recording.marks);
  const found = direction > 0 ? all.find((one) => one.start_us > now + 1000) : all.findLast((one) => one.start_us < now - 1000);
  if (!found) return;
  const overlapping = (one) => one.label === found.label && one.start_us < found.end_us && found.start_us < one.end_us;
  const predicted = ((recording.predicted || {})[found.label] || []).map(
    ([start_us, end_us, confidence]) => ({ start_us, end_us, label: found.label, how: "proposed", confidence }));
  const item = found.kind === "extra" ? predicted.find(overlapping) : found.kind === "missed" ? recording.marks.find((one) => edit.isOn(one) && overlapping(one)) : found;
  player.pause();
  player.seek(found.start_us);
  lanes.reveal(found.start_us, found.end_us);
  select(item || null);
}

// --- what is seen ------------------------------------------------------------------------------------

const SAYS = {
  proposed: "proposed", accepted: "accepted as proposed", corrected: "corrected", added: "added", annotated: "as annotated",
};

function draw() {
  const by = sources(recording.blind ? { blind: marks().filter(edit.isOn).length } : countedMarks(marks(), 0));
  const state = recording.blind ? "predictions hidden" : recording.annotated ? "annotated" : "not annotated";
  the("about").textContent = [recording.split && `${recording.split} split`, minutes(recording.duration_us), state, by].filter(Boolean).join(" · ");
  lanes.show(marks(), edit.proposals(recording, marks()), selected, stretch);
  lanes.head(player.time_us, false);
  const span = chosenSpan();
  const time = span ? `${clock(span.start_us)} – ${clock(span.end_us)}, ${((span.end_us - span.start_us) / 1e6).toFixed(2)} s` : "";
  const who = selected && selected.by ? ` by ${selected.by}` : "";
  const sure = selected && selected.how === "proposed" ? `, ${selected.confidence.toFixed(2)}` : "";
  the("selection").textContent = selected ? `${selected.label}: ${SAYS[selected.how]}${sure}${who}\n${time}` : span ? `A stretch\n${time}` : open_();
  const acts = { accept: selected && selected.how === "proposed", reject: Boolean(selected), undo: past.length > 0, redo: future.length > 0 };
  for (const [name, can] of Object.entries(acts)) {
    for (const button of document.querySelectorAll(`[data-act="${name}"]`)) button.disabled = !can;
  }
}

function open_() {
  const count = edit.targets(recording, marks()).length;
  return count ? `${count} ${count === 1 ? "place" : "places"} to look at: N goes to the next.` : "Nothing is selected. Drag over the lanes, or click a bar.";
}

function onTime(time_us, isPlaying) {
  the("clock").textContent = clock(time_us);
  the("play").textContent = isPlaying ? "Pause" : "Play";
  if (recording) lanes.head(time_us, isPlaying);
}

// --- keys and buttons --------------------------------------------------------------------------------

const ACTS = {
  play: () => player.toggle(),
  playSelection: () => player.playSpan(chosenSpan()),
  frameBack: () => player.step(-1),
  frameOn: () => player.step(1),
  secondBack: () => player.seek(player.time_us - 1e6),
  secondOn: () => player.seek(player.time_us + 1e6),
  loop() {
    const on = player.loop(chosenSpan());
    the("loop").setAttribute("aria-pressed", String(on));
  },
  next: () => goTo(1),
  previous: () => goTo(-1),
  startHere: () => selected && moveBorder(selected, "start", player.time_us, true),
  endHere: () => selected && moveBorder(selected, "end", player.time_us, true),
  accept, reject, reviewed, suggested, undo, redo,
  zoomIn: () => lanes.zoom(0.5, player.time_us),
  zoomOut: () => lanes.zoom(2, player.time_us),
  zoomAll: () => lanes.view(0, recording.duration_us),
  none() {
    stretch = null;
    select(null);
  },
};
const KEYS = {
  " ": "play", "Shift+ ": "playSelection", "Ctrl+ ": "play", ArrowLeft: "frameBack", ArrowRight: "frameOn", "Ctrl+ArrowLeft": "frameBack",
  "Ctrl+ArrowRight": "frameOn", "Shift+ArrowLeft": "secondBack", "Shift+ArrowRight": "secondOn", l: "loop", "Ctrl+l": "loop", n: "next", p: "previous", s: "suggested",
  a: "accept", x: "reject", Delete: "reject", Enter: "reviewed", "[": "startHere", "]": "endHere", "Ctrl+z": "undo", "Ctrl+y": "redo",
  "Ctrl+Shift+Z": "redo", "+": "zoomIn", "=": "zoomIn", "-": "zoomOut", 0: "zoomAll", Escape: "none",
};

for (const button of document.querySelectorAll("[data-act]")) {
  button.addEventListener("click", () => {
    if (recording) ACTS[button.dataset.act]();
    the("lanes").focus({ preventScroll: true });
  });
}

addEventListener("keydown", (event) => {
  if (!recording || event.altKey || event.target.matches("input, select, textarea, summary")) return;
  const isButton = event.target.matches("button") && (event.key === " " || event.key === "Enter");
  if (isButton && !event.ctrlKey) return;
  const ctrl = event.ctrlKey || event.metaKey ? "Ctrl+" : "";
  const shift = event.shiftKey && (event.key.length > 1 || event.key === " " || ctrl) ? "Shift+" : "";
  if (!ctrl && /^[1-9]$/.test(event.key)) {
    add(Number(event.key) - 1);
  } else {
    const act = KEYS[`${ctrl}${shift}${event.key}`] || (!ctrl && KEYS[event.key.toLowerCase()]);
    if (!act) return;
    ACTS[act]();
  }
  event.preventDefault();
});

addEventListener("beforeunload", (event) => {
  if (saver.isUnsaved) event.preventDefault();
});

// --- the beginning -----------------------------------------------------------------------------------

// The address may name a moment: #recording=ID&t=SECONDS, or as the report does #name=FILE&t=SECONDS.
function asked() {
  const found = new URLSearchParams(location.hash.slice(1));
  const name = found.get("name");
  const named = (each) => {
    const folders = each.name.split("/");
    const file = folders.pop();
    return name === file || name === `${file} (${folders.pop() || "no folder"})`; // as the report tells two files apart
  };
  const same = recordings.all.filter(named);
  const one = recordings.of(found.get("recording")) || (same.length === 1 ? same[0] : null);
  return one ? [one.id, Number(found.get("t") || 0) * 1e6] : null;
}

async function begin() {
  const found = await ask("api/recordings");
  the("reviewer").textContent = found.reviewer;
  the("report").hidden = !found.has_report;
  recordings.show(found.recordings);
  const first = asked() || (recordings.first ? [recordings.first.id, 0] : null);
  if (first) await open(first[0], false, first[1]);
}

addEventListener("hashchange", () => {
  const found = asked();
  if (found) open(found[0], false, found[1]).catch(fail);
});
begin().catch(fail);
