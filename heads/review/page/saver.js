// Sends every change at once, one after the other, each made from the version that the server gave before.

export class Saver {
  constructor(ask, onState) {
    Object.assign(this, { ask, onState });
    this.next = null; // marks that wait
    this.running = null;
  }

  get isUnsaved() { return this.running !== null || Boolean(this.isStuck); }

  open(path, version) { Object.assign(this, { path, version, next: null, isStuck: false }); }

  settled() { return this.running || Promise.resolve(); }

  save(marks) {
    this.next = marks;
    if (this.isStuck) return;
    this.onState("saving");
    if (!this.running) this.running = this.run().finally(() => { this.running = null; });
  }

  async run() {
    let saved = null;
    while (this.next) {
      const marks = this.next;
      this.next = null;
      const sent = marks.map(({ start_us, end_us, label, how }) => ({ start_us, end_us, label, how }));
      try {
        saved = await this.ask(this.path, {
          method: "PUT",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ version: this.version, marks: sent }),
        });
        this.version = saved.version;
      } catch (error) {
        this.isStuck = true; // until the review is loaded again: later changes would be made from what is not there
        this.onState("failed", error);
        return;
      }
    }
    this.onState("saved", saved.marks);
  }
}
