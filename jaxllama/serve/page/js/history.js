/**
 * The history of the dashboard's figures: differences of counters and percentiles of waits, for the
 * last hour, kept in this browser. Knows numbers, not the page.
 */

/** @typedef {{bounds: number[], counts: number[]}} Waits */
/**
 * @typedef {object} Figures one event of /metrics/live
 * @property {number} time
 * @property {string} state
 * @property {number} context
 * @property {Record<string, number>} figures
 * @property {Record<string, number>} tokens
 * @property {Record<string, number>} requests
 * @property {number} hits
 * @property {Waits} first
 * @property {Waits} between
 * @property {{index: number, is_held: boolean, cached: number, prompt: number, decoded: number, most: number}[]} slots
 * @property {{name: string, is_you: boolean, waiting: number, running: number, slots: number, tokens: number}[]} clients
 * @property {Record<string, number>} adapters
 * @property {string[]} pending
 * @property {number | null} resident_bytes
 * @property {number} weight_bytes
 * @property {number | null} memory_bytes_per_second
 */
/** @typedef {Record<string, number | null>} Sample values at one time; `time` in seconds */

const KEY = "jaxllama.dashboard";
const SECONDS_KEPT = 3600;
const SECONDS_BETWEEN_SAVES = 10;
export const SHARES = [0.5, 0.9, 0.99];

/** Turns events into samples, and keeps those of the last hour. */
export class History {
  constructor() {
    /** @type {Sample[]} */
    this.samples = readSamples();
    /** @type {Figures | null} */
    this.last = null;
    this.saved = 0;
  }

  /**
   * Add an event; returns its sample, or null for the first one and after a restart of the server.
   * @param {Figures} now
   */
  add(now) {
    const before = this.last;
    this.last = now;
    if (!before || now.figures.engine_steps < before.figures.engine_steps) return null;
    const seconds = now.time - before.time;
    if (!(seconds > 0)) return null;
    const sample = sampleOf(before, now, seconds);
    this.samples.push(sample);
    const oldest = now.time - SECONDS_KEPT;
    const first = this.samples.findIndex(({ time }) => Number(time) >= oldest);
    if (first > 0) this.samples.splice(0, first);
    if (now.time - this.saved > SECONDS_BETWEEN_SAVES) this.save(now.time);
    return sample;
  }

  /** @param {number} time */
  save(time) {
    this.saved = time;
    try {
      localStorage.setItem(KEY, JSON.stringify(this.samples));
    } catch {
      // Without room the history lasts until the page is closed.
    }
  }

  /**
   * Return the points of a figure in the last seconds.
   * @param {string} name
   * @param {number} seconds
   * @returns {[number, number][]}
   */
  points(name, seconds) {
    const end = Number(this.samples.at(-1)?.time ?? 0);
    return this.samples
      .filter(({ time }) => Number(time) >= end - seconds)
      .map((sample) => [Number(sample.time), sample[name] ?? NaN]);
  }
}

/**
 * @param {Figures} before
 * @param {Figures} now
 * @param {number} seconds
 * @returns {Sample}
 */
function sampleOf(before, now, seconds) {
  const between = changeOf(before.between, now.between);
  const first = changeOf(before.first, now.first);
  const written = total(between) + total(first);
  const rate = (/** @type {string} */ name) => ((now.tokens[name] ?? 0) - (before.tokens[name] ?? 0)) / seconds;
  const { figures } = now;
  const busy = (figures.engine_step_seconds - before.figures.engine_step_seconds) / seconds;
  /** @type {Sample} */
  const sample = {
    time: Math.round(now.time * 10) / 10,
    written: written / seconds,
    read: rate("prompt") - rate("reused"),
    queue: figures.queue_requests,
    used: figures.slots_used,
    busy: Math.max(0, Math.min(1, busy)),
    bandwidth: busy > 0.02 ? figures.weight_bytes_per_second : null,
  };
  for (const share of SHARES) {
    sample[`first${share}`] = percentile(first, now.first.bounds, share);
    sample[`between${share}`] = percentile(between, now.between.bounds, share);
  }
  return sample;
}

/**
 * @param {Waits} before
 * @param {Waits} now
 */
function changeOf(before, now) {
  return now.counts.map((count, place) => Math.max(0, count - (before.counts[place] ?? 0)));
}

/** @param {number[]} counts */
function total(counts) {
  return counts.reduce((sum, count) => sum + count, 0);
}

/**
 * Return a percentile of a histogram, between the bounds of its bucket by linear interpolation; null
 * if nothing was counted.
 * @param {number[]} counts one more than bounds
 * @param {number[]} bounds
 * @param {number} share from 0 to 1
 */
export function percentile(counts, bounds, share) {
  const sum = total(counts);
  if (sum === 0) return null;
  let below = 0;
  for (const [place, count] of counts.entries()) {
    if (count > 0 && below + count >= share * sum) {
      const low = place > 0 ? bounds[place - 1] : 0;
      const high = bounds[place] ?? low;
      return low + ((share * sum - below) / count) * (high - low);
    }
    below += count;
  }
  return bounds.at(-1) ?? null;
}

/** @returns {Sample[]} */
function readSamples() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    if (!Array.isArray(found)) return [];
    const oldest = Date.now() / 1000 - SECONDS_KEPT;
    return found.filter((each) => typeof each === "object" && each !== null && each.time >= oldest);
  } catch {
    return [];
  }
}
