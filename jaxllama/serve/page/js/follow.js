/**
 * One batch as it runs: reads its answers from the server as they come, and computes speed and time
 * left. Used by run.js; knows no elements.
 */

import { isOver, readAnswered } from "./batches.js";

/** @typedef {import("./batches.js").Batch} Batch */
/** @typedef {import("./batches.js").Answered} Answered */
/** @typedef {import("./batches.js").Batches} Batches */

const MILLISECONDS_BETWEEN_LOOKS = 700;
const MILLISECONDS_AFTER_FAULT = 3000;
const LINES_AT_ONCE = 250; // read in one go, so that the page stays quick

/**
 * @typedef {object} Watcher
 * @property {(answers: Answered[]) => void} onAnswers
 * @property {() => void} onChange called when status, counts or speed changed
 * @property {(error: unknown) => void} onFault called when the server could not be asked
 */

/** Follows a batch until it is over or `stop` is called. */
export class Follower {
  /**
   * @param {Batches} batches
   * @param {Batch} batch
   * @param {Watcher} watcher
   */
  constructor(batches, batch, watcher) {
    this.batches = batches;
    this.batch = batch;
    this.watcher = watcher;
    this.controller = new AbortController();
    this.tokens = 0;
    this.answered = 0;
    this.places = { output: 0, errors: 0 };
    /** @type {{time: number, tokens: number, answered: number}[]} */
    this.history = [];
    this.isComplete = false;
  }

  stop() {
    this.controller.abort();
  }

  get isStopped() {
    return this.controller.signal.aborted;
  }

  /** Follow the batch. */
  async run() {
    while (!this.isStopped) {
      let pause = MILLISECONDS_BETWEEN_LOOKS;
      try {
        // The description first: when it says that the batch is over, all lines are written.
        this.batch = await this.batches.get(this.batch.id);
        const over = isOver(this.batch);
        await this.read("output");
        await this.read("errors");
        if (this.isStopped) return;
        this.isComplete = over;
        this.watcher.onChange();
        if (over) return;
      } catch (error) {
        if (this.isStopped) return;
        this.watcher.onFault(error);
        pause = MILLISECONDS_AFTER_FAULT;
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  /** @param {"output" | "errors"} kind */
  async read(kind) {
    for (;;) {
      const { lines, next } = await this.batches.done(this.batch.id, kind, this.places[kind]);
      if (this.isStopped || lines.length === 0) return;
      this.places[kind] = next;
      for (let at = 0; at < lines.length; at += LINES_AT_ONCE) {
        const answers = lines.slice(at, at + LINES_AT_ONCE).map(readAnswered);
        for (const { tokens } of answers) this.tokens += tokens;
        this.answered += answers.length;
        this.history.push({ time: performance.now(), tokens: this.tokens, answered: this.answered });
        this.watcher.onAnswers(answers);
        await new Promise(requestAnimationFrame);
        if (this.isStopped) return;
      }
    }
  }

  /**
   * Return tokens per second and seconds left, from what came while this page looked; null while
   * that is not known.
   */
  get speed() {
    const { history } = this;
    // The first answers were there when the page began to look.
    const [first, last] = [history.findLast(({ time }) => time < performance.now() - 20_000) ?? history[0], history.at(-1)];
    const seconds = first && last ? (performance.now() - first.time) / 1000 : 0;
    if (!first || !last || last.answered === first.answered || seconds < 0.5) return null;
    const left = this.batch.request_counts.total - last.answered;
    return {
      tokens: (last.tokens - first.tokens) / seconds,
      left: (left * seconds) / (last.answered - first.answered),
    };
  }
}
