// What a person decides, as pure functions of a list of marks {start_us, end_us, label, how}: each gives a new list.
// Marks of one label never overlap; a rejected prediction and a reviewed stretch (label "") are marks too.

const MILLISECOND_US = 1000;
const onTime = (time_us) => Math.round(time_us / MILLISECOND_US) * MILLISECOND_US;
const overlaps = (one, other) => one.start_us < other.end_us && other.start_us < one.end_us;
const isOn = (mark) => mark.how !== "rejected" && mark.how !== "reviewed";
const inOrder = (marks) => [...marks].sort((a, b) => a.start_us - b.start_us || a.label.localeCompare(b.label));
const same = (a, b) => a.start_us === b.start_us && a.end_us === b.end_us && a.label === b.label && a.how === b.how;

// A mark takes the place of those of its label that it overlaps; to reject a prediction takes away no more than that.
function placed(marks, mark) {
  const yields = (one) => mark.how !== "rejected" || one.how === "rejected" || one.how === "accepted";
  return inOrder([...marks.filter((one) => one.label !== mark.label || one.how === "reviewed" || !overlaps(one, mark) || !yields(one)), mark]);
}

const rounded = ({ start_us, end_us, label }, how) => ({ start_us: onTime(start_us), end_us: onTime(end_us), label, how });

export const accept = (marks, proposal, how = "accepted") => placed(marks, rounded(proposal, how));

export const reject = (marks, proposal) => placed(marks, rounded(proposal, "rejected"));

export const remove = (marks, mark) => marks.filter((one) => !same(one, mark));

// A label over a stretch; with what it overlaps of that label it becomes one.
export function add(marks, label, { start_us, end_us }) {
  const joined = marks.filter((one) => isOn(one) && one.label === label && overlaps(one, { start_us, end_us }));
  const start = Math.min(start_us, ...joined.map((one) => one.start_us));
  const end = Math.max(end_us, ...joined.map((one) => one.end_us));
  return placed(marks, rounded({ start_us: start, end_us: end, label }, "added"));
}

// A mark with another start or end, held back by its neighbours; null where nothing of it would remain.
export function moved(marks, mark, side, time_us) {
  const others = marks.filter((one) => isOn(one) && one.label === mark.label && !same(one, mark));
  const low = Math.max(0, ...others.filter((one) => one.end_us <= mark.start_us).map((one) => one.end_us));
  const high = Math.min(Infinity, ...others.filter((one) => one.start_us >= mark.end_us).map((one) => one.start_us));
  const time = onTime(Math.min(high, Math.max(low, time_us)));
  const how = mark.how === "added" ? "added" : "corrected";
  const next = { ...rounded(mark, how), [side === "start" ? "start_us" : "end_us"]: time };
  if (next.end_us - next.start_us < MILLISECOND_US) return null;
  return { marks: placed(remove(marks, mark), next), mark: next };
}

// Predictions that nobody decided about, where nobody annotated: they count unless they are rejected.
export function proposals(recording, marks) {
  if (!recording.predicted) return [];
  const annotated = (recording.annotated_us || []).map(([start_us, end_us]) => ({ start_us, end_us }));
  const reviewed = marks.filter((one) => one.how === "reviewed");
  const inside = (spans, time_us) => spans.some((span) => span.start_us <= time_us && time_us < span.end_us);
  return recording.labels.flatMap((label) =>
    (recording.predicted[label] || [])
      .map(([start_us, end_us, confidence]) => ({ start_us, end_us, label, how: "proposed", confidence }))
      .filter((one) => {
        const middle = (one.start_us + one.end_us) / 2;
        const decided = marks.some((mark) => mark.label === label && overlaps(mark, one));
        return !decided && !inside(annotated, middle) && !inside(reviewed, middle);
      }));
}

// The stretch is reviewed; proposals in it are accepted as they are.
export function review(marks, recording, stretch) {
  let next = marks;
  for (const one of proposals(recording, marks)) {
    const middle = (one.start_us + one.end_us) / 2;
    if (stretch.start_us <= middle && middle < stretch.end_us) next = accept(next, one);
  }
  const own = { ...rounded({ ...stretch, label: "" }, "reviewed") };
  const touching = next.filter((one) => one.how === "reviewed" && one.start_us <= own.end_us && own.start_us <= one.end_us);
  own.start_us = Math.min(own.start_us, ...touching.map((one) => one.start_us));
  own.end_us = Math.max(own.end_us, ...touching.map((one) => one.end_us));
  return inOrder([...next.filter((one) => !touching.includes(one)), own]);
}

// Where the reviewed stretch that a time lies in, or the last one before it, ends; 0 without one.
export function reviewedUntil(marks, time_us) {
  const ends = marks.filter((one) => one.how === "reviewed" && one.start_us <= time_us).map((one) => one.end_us);
  return Math.max(0, ...ends);
}

// What deserves a look, in order of time: proposals, and differences that nobody decided about.
export function targets(recording, marks) {
  const isOpen = (one) => {
    const own = marks.filter((mark) => mark.label === one.label && overlaps(mark, one));
    return one.kind === "missed" ? own.some((mark) => mark.how === "annotated") : own.every((mark) => mark.how === "annotated");
  };
  const reviewed = marks.filter((one) => one.how === "reviewed");
  const differing = (recording.differing || []).filter(
    (one) => isOpen(one) && !reviewed.some((span) => span.start_us <= one.start_us && one.end_us <= span.end_us));
  return [...proposals(recording, marks), ...differing].sort((a, b) => a.start_us - b.start_us);
}

export { isOn, same };
