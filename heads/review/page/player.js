// The video and its clock. Where no video can be played the clock still moves by hand, and marks can be made.

const CHECK_AFTER_MS = 500;

export class Player {
  constructor(video, note, ask, onTime) {
    Object.assign(this, { video, note, ask, onTime });
    this.time_us = 0;
    this.span = null; // that is played, once or in a loop
    this.isLooping = false;
    video.addEventListener("seeked", () => this.tell());
    for (const name of ["play", "pause", "ended"]) video.addEventListener(name, () => this.tell());
    video.addEventListener("error", () => {
      if (video.getAttribute("src")) this.note.textContent = "The browser cannot play this video.";
    });
    this.tick = this.tick.bind(this);
  }

  get isPlaying() { return !this.video.paused && !this.video.ended; }

  async open(recording, time_us) {
    const { video, note } = this;
    this.recording = recording;
    const isSame = video.dataset.id === recording.id;
    [this.span, this.isLooping] = [null, false];
    if (isSame) return this.seek(time_us);
    video.dataset.id = recording.id;
    video.removeAttribute("src");
    video.load();
    this.time_us = time_us;
    this.tell();
    const path = `api/video/${recording.id}`;
    let found = await this.ask(path);
    while (found.state === "preparing" && this.recording.id === recording.id) {
      note.textContent = `Preparing the video for the browser: ${Math.round(100 * found.share)} %`;
      await new Promise((done) => setTimeout(done, CHECK_AFTER_MS));
      found = await this.ask(path);
    }
    if (this.recording.id !== recording.id) return undefined;
    note.textContent = found.reason;
    if (found.state !== "ready") return undefined;
    const loaded = new Promise((done) => {
      for (const name of ["loadeddata", "error"]) video.addEventListener(name, done, { once: true });
    });
    video.src = `video/${recording.id}`;
    await loaded;
    return this.seek(this.time_us);
  }

  seek(time_us) {
    const end_us = this.recording.duration_us;
    this.time_us = Math.min(Math.max(0, Math.round(time_us)), end_us);
    if (this.video.readyState > 0) this.video.currentTime = this.time_us / 1e6;
    this.tell();
  }

  step(frames) {
    this.pause();
    const frame_us = 1e6 / this.recording.fps;
    // To the middle of a frame, so that no rounding shows its neighbour.
    this.seek((Math.floor(this.time_us / frame_us + 1e-3) + frames + 0.5) * frame_us);
  }

  toggle() {
    if (this.isPlaying) return this.pause();
    if (!this.isLooping) this.span = null;
    return this.play();
  }

  play() {
    if (this.video.readyState === 0) return;
    this.video.play().then(() => requestAnimationFrame(this.tick), () => {});
  }

  pause() { this.video.pause(); }

  playSpan(span) {
    if (!span) return;
    this.span = span;
    this.seek(span.start_us);
    this.play();
  }

  // Turns the loop of a span on or off, and says which.
  loop(span) {
    this.isLooping = !this.isLooping && Boolean(span);
    this.span = this.isLooping ? span : null;
    if (this.isLooping) this.playSpan(span);
    return this.isLooping;
  }

  tick() {
    if (!this.isPlaying) return this.tell();
    const now = this.video.currentTime * 1e6;
    if (this.span && now >= this.span.end_us) {
      if (this.isLooping) this.seek(this.span.start_us);
      else {
        this.pause();
        this.seek(this.span.end_us);
        this.span = null;
      }
    }
    this.tell();
    return requestAnimationFrame(this.tick);
  }

  tell() {
    if (this.video.readyState > 0 && !this.video.seeking) this.time_us = Math.round(this.video.currentTime * 1e6);
    this.onTime(this.time_us, this.isPlaying);
  }
}
