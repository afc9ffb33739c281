/**
 * One setting of the bench: its knobs, its answer as it streams, and the recording of that answer.
 * Knows the API's requests, not the other settings.
 */

import { asServerError } from "./api.js";
import { h, iconButton } from "./dom.js";
import { shown } from "./stages.js";

/** @typedef {import("./api.js").Server} Server */
/** @typedef {import("./stages.js").Position} Position */
/** @typedef {Record<string, unknown>} Knobs */
/** @typedef {{prompt: string, mode: string, tokens: number, seed: number}} Task */
/** @typedef {{task: Task, knobs: Knobs, texts: string[]}} Run what an answer was made from */

const CANDIDATES = 40;

/** Shows and runs one setting. */
export class Setting {
  /**
   * @param {{name: string, knobs: Knobs}} start
   * @param {object} parts
   * @param {Server} parts.server
   * @param {(setting: Setting) => void} parts.onSelect
   * @param {(setting: Setting) => void} parts.onEdit
   * @param {(setting: Setting) => void} parts.onRename
   * @param {(setting: Setting) => void} parts.onCopy
   * @param {(setting: Setting) => void} parts.onRemove
   * @param {(setting: Setting) => void} parts.onRun
   * @param {(setting: Setting, place: number) => void} parts.onToken
   */
  constructor({ name, knobs }, { server, onSelect, onEdit, onRename, onCopy, onRemove, onRun, onToken }) {
    this.knobs = knobs;
    this.server = server;
    this.onToken = onToken;
    /** @type {Run | null} */
    this.run = null;
    /** @type {Promise<string> | null} id of the recording of the answer */
    this.recording = null;
    /** @type {Map<number, Position>} by their places */
    this.positions = new Map();
    /** @type {AbortController | null} */
    this.running = null;
    this.chosen = -1; // place of the token that is explained
    this.field = h("input", {
      type: "text",
      "aria-label": "Name of the setting",
      maxlength: 40,
      oninput: () => onRename(this),
      onfocus: () => onSelect(this),
    });
    this.field.value = name;
    this.summary = h("button", { type: "button", class: "setting-knobs", title: "Change these settings", onclick: () => onEdit(this) });
    this.text = h("p", {
      class: "setting-text",
      role: "group",
      "aria-label": "Answer, token by token",
      tabindex: 0,
      onclick: (/** @type {Event} */ event) => this.click(event),
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.move(event),
    });
    this.foot = h("p", { class: "setting-foot", role: "status" }, "Not run yet");
    this.removeButton = iconButton("trash", "Remove this setting", () => onRemove(this));
    this.element = h(
      "section",
      { class: "setting", "aria-label": name },
      h(
        "div",
        { class: "setting-head" },
        this.field,
        iconButton("play", "Run this setting", () => onRun(this)),
        iconButton("copy", "Copy this setting", () => onCopy(this)),
        this.removeButton,
      ),
      this.summary,
      this.text,
      this.foot,
    );
    this.showKnobs();
  }

  get name() {
    return this.field.value;
  }

  showKnobs() {
    const parts = Object.entries(this.knobs).map(([name, value]) => `${name} ${typeof value === "object" ? "…" : value}`);
    this.summary.textContent = parts.join(", ") || "as the model's maker recommends";
    this.element.setAttribute("aria-label", this.name);
  }

  /**
   * Request an answer and show its tokens as they come.
   * @param {Task} task
   */
  async start(task) {
    this.stop();
    const mine = (this.running = new AbortController());
    /** @type {Run} */
    const run = { task, knobs: structuredClone(this.knobs), texts: [] };
    this.run = run;
    this.recording = null;
    this.positions.clear();
    this.chosen = -1;
    this.text.replaceChildren();
    this.say("waits…");
    const began = performance.now();
    let first = 0;
    try {
      for await (const token of this.server.tokens(requestOf(run), mine.signal)) {
        first ||= performance.now();
        this.add(token, run);
        const seconds = (performance.now() - first) / 1000;
        const rate = run.texts.length > 1 && seconds > 0 ? `, ${((run.texts.length - 1) / seconds).toFixed(1)} per second` : "";
        this.say(`${run.texts.length} tokens${rate}, first after ${Math.round(first - began)} ms`);
      }
      if (run.texts.length === 0) this.say("an empty answer");
    } catch (thrown) {
      if (mine.signal.aborted) this.say(`stopped after ${run.texts.length} tokens`);
      else return this.fail(asServerError(thrown));
    } finally {
      if (this.running === mine) this.running = null;
    }
    return null;
  }

  stop() {
    this.running?.abort();
  }

  /**
   * @param {string} words
   * @param {boolean} [isWrong]
   */
  say(words, isWrong = false) {
    this.foot.textContent = words;
    this.foot.classList.toggle("wrong", isWrong);
  }

  /** @param {import("./api.js").ServerError} error */
  fail(error) {
    this.say(`${error.message} ${error.remedy}`.trim(), true);
    return error;
  }

  /**
   * @param {{text: string, logprob: number}} token
   * @param {Run} run
   */
  add({ text, logprob }, run) {
    if (run !== this.run) return;
    const place = run.texts.length;
    run.texts.push(text);
    const isControl = text.trim() === "";
    const element = h(
      "span",
      { class: isControl ? "token control" : "token", role: "button", "aria-pressed": "false", tabindex: place === 0 ? 0 : -1, title: "Explain this token" },
      isControl ? `${shown(text, 0)}${text.includes("\n") ? "\n" : ""}` : text,
    );
    element.style.setProperty("--surprise", String(Math.min(1, Math.max(0, -logprob / 8))));
    this.text.tabIndex = -1;
    this.text.append(element);
    this.text.scrollTop = this.text.scrollHeight;
  }

  /** @param {Event} event */
  click({ target }) {
    const place = [...this.text.children].indexOf(/** @type {Element} */ (target));
    if (place >= 0) this.choose(place);
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const tokens = /** @type {HTMLElement[]} */ ([...this.text.children]);
    const at = tokens.indexOf(/** @type {HTMLElement} */ (event.target));
    if (at < 0) return;
    /** @type {Record<string, number>} */
    const targets = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 };
    if (event.key in targets) {
      const next = tokens[Math.max(0, Math.min(tokens.length - 1, targets[event.key]))];
      for (const each of tokens) each.tabIndex = each === next ? 0 : -1;
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      this.choose(at);
    } else {
      return;
    }
    event.preventDefault();
  }

  /** @param {number} place */
  choose(place) {
    this.mark(place);
    this.onToken(this, place);
  }

  /** @param {number} place of the token that is explained; -1: none */
  mark(place) {
    this.chosen = place;
    for (const [number, token] of [...this.text.children].entries()) {
      token.setAttribute("aria-pressed", String(number === place));
    }
  }

  /**
   * Return one position of the answer as it was drawn. The first time, the server answers again (the
   * same seed gives the same tokens) and keeps the logits; later positions come from the recording.
   * @param {number} place
   * @returns {Promise<Position>}
   */
  async position(place) {
    const { run } = this;
    if (!run) throw new Error("nothing was run");
    const known = this.positions.get(place);
    if (known) return known;
    if (this.recording === null) {
      const asking = this.explain(run, place);
      this.recording = asking.then(({ id }) => id);
      this.recording.catch(() => (this.recording = null));
      const { position } = await asking;
      if (run === this.run) this.positions.set(place, position);
      return position;
    }
    const found = await this.replayed(place, {});
    if (run === this.run) this.positions.set(place, found);
    return found;
  }

  /**
   * @param {Run} run
   * @param {number} place
   * @returns {Promise<{id: string, position: Position}>}
   */
  async explain(run, place) {
    const body = { ...requestOf(run), max_tokens: run.texts.length, keep: true, position: place, candidates: CANDIDATES };
    const { positions, recording } = await this.server.post("/explain", body);
    return { id: recording, position: positions[0] };
  }

  /** The knobs that differ from those of the answer, as changes for a replay. */
  changes() {
    const before = this.run?.knobs ?? {};
    /** @type {Knobs} */
    const found = {};
    for (const name of new Set([...Object.keys(before), ...Object.keys(this.knobs)])) {
      const value = this.knobs[name] ?? null;
      if (JSON.stringify(value) !== JSON.stringify(before[name] ?? null)) found[name] = value;
    }
    return found;
  }

  /**
   * Draw one token of the recorded answer again, with the knobs of this moment.
   * @param {number} place
   * @param {Knobs} changes
   * @returns {Promise<Position>}
   */
  async replayed(place, changes) {
    const { run } = this;
    if (!run) throw new Error("nothing was run");
    this.recording ??= this.explain(run, place).then(({ id }) => id);
    const ask = { position: place, what_if: changes, candidates: CANDIDATES };
    try {
      return (await this.server.post("/explain/replay", { ...ask, recording: await this.recording })).positions[0];
    } catch (thrown) {
      if (asServerError(thrown).status !== 404) throw thrown;
      this.recording = this.explain(run, place).then(({ id }) => id); // it was kept for a while only
      return (await this.server.post("/explain/replay", { ...ask, recording: await this.recording })).positions[0];
    }
  }
}

/**
 * @param {Run} run
 * @returns {Knobs}
 */
function requestOf({ task, knobs }) {
  const asked = task.mode === "chat" ? { messages: [{ role: "user", content: task.prompt }] } : { prompt: task.prompt };
  return { ...knobs, ...asked, max_tokens: task.tokens, seed: task.seed };
}
