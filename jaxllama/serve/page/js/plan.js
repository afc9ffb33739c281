/**
 * The plan of a batch: a template, rows of values and a number of answers, as the requests that the
 * server gets. The same rules as `jaxllama batch`. Used by batch.js; knows no page.
 */

import { requestLine } from "./batches.js";
import { namesOf, textOf } from "./rows.js";
import { fill } from "./template.js";

/** @typedef {import("./rows.js").FileRow} FileRow */

/**
 * @typedef {object} Plan
 * @property {"chat" | "completion"} mode
 * @property {string} system for a chat; "" for none
 * @property {string} template
 * @property {FileRow[]} rows none: the template is one prompt
 * @property {number} count answers to each prompt
 * @property {Record<string, unknown>} knobs
 * @property {string} format name of a prompt format, or "" for the model's own
 * @property {string} model
 */

/** @typedef {{role: string, content: string}} Part the role of a prompt is "" */

const GOLDEN = 0x9e3779b97f4a7c15n; // between the seeds of answers to one prompt, as in the engine
const HIGHEST = (1n << 63n) - 1n;
export const MOST = 10_000; // requests

/** @param {Plan} plan */
export function requestsOf({ rows, count }) {
  return Math.max(rows.length, 1) * count;
}

/**
 * Return what the prompt for a row says; throws TemplateError.
 * @param {Plan} plan
 * @param {number} index
 * @returns {Part[]}
 */
export function partsOf({ mode, system, template, rows }, index) {
  const values = rows[index]?.values;
  // Without rows the text is a prompt, not a template, so braces stay as they are.
  const filled = (/** @type {string} */ text) => (values ? fill(text, values) : text);
  if (mode === "completion") return [{ role: "", content: filled(template) }];
  const told = system === "" ? [] : [{ role: "system", content: filled(system) }];
  return [...told, { role: "user", content: filled(template) }];
}

/**
 * Return the first mistake of a plan, or "".
 * @param {Plan} plan
 */
export function problemOf(plan) {
  if (plan.template === "") return "The prompt is empty.";
  const total = requestsOf(plan);
  if (total > MOST) return `These are ${total} answers; at most ${MOST} are possible at a time.`;
  for (const [place, row] of plan.rows.entries()) {
    try {
      partsOf(plan, place);
    } catch (error) {
      return `Line ${row.line}: ${/** @type {Error} */ (error).message}.`;
    }
  }
  return "";
}

/** @param {Plan} plan */
export function endpointOf({ mode }) {
  return mode === "chat" ? "/v1/chat/completions" : "/v1/completions";
}

/**
 * Return the lines of a batch's input file. Each request has a seed, so that it can be asked again:
 * the same seed gives the same text.
 * @param {Plan} plan
 */
export function linesOf(plan) {
  const { mode, count, format, knobs, model } = plan;
  const { seed, ...others } = knobs;
  const lines = [];
  for (let index = 0; index < Math.max(plan.rows.length, 1); index += 1) {
    const parts = partsOf(plan, index);
    const body = {
      model,
      ...(mode === "chat" ? { messages: parts } : { prompt: parts[0].content }),
      ...(mode === "chat" && format && { format }),
      ...asFields(others, mode),
    };
    const own = plan.rows[index]?.values.get("id");
    for (let answer = 0; answer < count; answer += 1) {
      lines.push(
        requestLine({
          endpoint: endpointOf(plan),
          index,
          answer,
          id: own === undefined ? "" : textOf(own),
          seed: seed === undefined ? anySeed() : choiceSeed(BigInt(Number(seed)), answer),
          body,
        }),
      );
    }
  }
  return lines;
}

/**
 * Return a name for a plan: the beginning of its template.
 * @param {Plan} plan
 */
export function titleOf({ template, rows, count }) {
  const words = template.trim().replace(/\s+/g, " ").slice(0, 60) || "Empty prompt";
  return rows.length > 0 ? `${words} (${rows.length} × ${count})` : words;
}

/**
 * Return the names of values that a template can use.
 * @param {FileRow[]} rows
 */
export function namesFor(rows) {
  return namesOf(rows).slice(0, 50);
}

/**
 * @param {Record<string, unknown>} knobs
 * @param {Plan["mode"]} mode
 */
function asFields({ logprobs, ...others }, mode) {
  if (logprobs === undefined) return others;
  return mode === "chat" ? { ...others, logprobs: true, top_logprobs: logprobs } : { ...others, logprobs };
}

/**
 * Return the seed of one of several answers to a prompt; the first has the prompt's own.
 * @param {bigint} seed
 * @param {number} answer
 */
export function choiceSeed(seed, answer) {
  return (seed + BigInt(answer) * GOLDEN) & HIGHEST;
}

function anySeed() {
  return crypto.getRandomValues(new BigUint64Array(1))[0] & HIGHEST;
}
