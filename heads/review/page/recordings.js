// The list of recordings: in which order, how far each is reviewed, what of it is suggested, and who said what is on.

import { isOn } from "./marks.js";

export const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);
export const minutes = (time_us) => `${Math.floor(time_us / 60e6)}:${String(Math.floor(time_us / 1e6) % 60).padStart(2, "0")}`;

const rank = (one) => Math.min(...one.suggested.map(([number]) => number), Infinity);
const ORDERS = {
  disagreement: (a, b) => (b.disagreement ?? -1) - (a.disagreement ?? -1) || b.doubt - a.doubt,
  doubt: (a, b) => b.doubt - a.doubt,
  suggested: (a, b) => (rank(a) === rank(b) ? 0 : rank(a) - rank(b)),
  name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
};

// Bouts by who said so, in words.
export function sources(counts) {
  const said = [[counts.annotated, "by annotators"], [counts.reviewed, "by review"], [counts.accepted, "merely accepted"], [counts.blind, "by blind review"]];
  return said.filter(([count]) => count).map(([count, whom]) => `${count} ${whom}`).join(", ");
}

// The same of marks that were made with predictions in sight.
export function countedMarks(marks, blind) {
  const count = (...kinds) => marks.filter((one) => kinds.includes(one.how)).length;
  return { annotated: count("annotated"), reviewed: count("corrected", "added"), accepted: count("accepted"), blind };
}

export class Recordings {
  constructor(place, onOpen) {
    Object.assign(this, { place, onOpen, all: [], order: "disagreement", current: null, lastRank: 0 });
    for (const button of document.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => {
        this.order = button.dataset.sort;
        for (const one of document.querySelectorAll("[data-sort]")) one.setAttribute("aria-pressed", String(one === button));
        this.draw();
      });
    }
  }

  of(id) { return this.all.find((one) => one.id === id); }

  get first() { return [...this.all].sort(ORDERS[this.order])[0]; }

  show(all) {
    this.all = all;
    this.draw();
  }

  // The stretch that was suggested after the last one shown, and is not reviewed; after the last of all the first.
  nextSuggested() {
    const left = this.all.flatMap((one) => one.suggested.map(([number, start_us, end_us]) => ({ id: one.id, number, start_us, end_us })));
    left.sort((a, b) => a.number - b.number);
    const found = left.find((one) => one.number > this.lastRank) || left[0];
    this.lastRank = found ? found.number : 0;
    return found;
  }

  // What was decided about one of them; suggested stretches that are wholly reviewed are done.
  saved(id, marks, blind) {
    const one = this.of(id);
    if (!one) return;
    const reviewed = marks.filter((mark) => mark.how === "reviewed");
    one.suggested = one.suggested.filter(([, start_us, end_us]) => !reviewed.some((mark) => mark.start_us <= start_us && end_us <= mark.end_us));
    if (blind) one.labels.blind = marks.filter(isOn).length;
    else {
      one.reviewed_us = reviewed.reduce((sum, mark) => sum + mark.end_us - mark.start_us, 0);
      one.labels = countedMarks(marks, one.labels.blind);
    }
    this.draw();
  }

  draw() {
    this.place.replaceChildren(...[...this.all].sort(ORDERS[this.order]).map((one) => this.row(one)));
    const total = { annotated: 0, reviewed: 0, accepted: 0, blind: 0 };
    for (const one of this.all) for (const key of Object.keys(total)) total[key] += one.labels[key];
    document.getElementById("sources").textContent = sources(total) && `Bouts: ${sources(total)}.`;
    for (const one of document.querySelectorAll(".of-suggestions")) one.hidden = !this.all.some((each) => each.suggested.length);
  }

  row(one) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = one.id;
    if (one.id === this.current) button.setAttribute("aria-current", "true");
    const name = document.createElement("bdi");
    name.textContent = one.name;
    const texts = [
      minutes(one.duration_us),
      one.problem ? "cannot be read" : one.disagreement === null ? "not annotated" : `differs ${percent(one.disagreement)}`,
      `doubt ${percent(one.doubt)}`,
      one.suggested.length ? `${one.suggested.length} suggested` : "",
    ].filter(Boolean).map((text) => Object.assign(document.createElement("small"), { textContent: text }));
    const done = document.createElement("progress");
    done.max = one.duration_us;
    done.value = one.reviewed_us;
    done.setAttribute("aria-label", `${percent(one.reviewed_us / one.duration_us)} reviewed`);
    button.title = one.problem;
    button.append(name, ...texts, done);
    button.addEventListener("click", () => this.onOpen(one.id));
    const row = document.createElement("li");
    row.append(button);
    return row;
  }
}
