/**
 * Batches of the server: start, list, follow, cancel, delete. Used by batch.js. Knows the JSON of
 * files and batches; knows no page.
 */

/** @typedef {import("./api.js").Server} Server */

/**
 * @typedef {object} Batch as the server describes it
 * @property {string} id
 * @property {string} endpoint
 * @property {string} status
 * @property {number} created_at
 * @property {number | null} in_progress_at
 * @property {number | null} [completed_at]
 * @property {string} input_file_id
 * @property {string | null} output_file_id
 * @property {string | null} error_file_id
 * @property {{total: number, completed: number, failed: number}} request_counts
 * @property {Record<string, string> | null} metadata
 * @property {{data: {message: string, line: number | null}[]} | null} errors
 */

/**
 * @typedef {object} Answered one request of a batch that is done
 * @property {number} line place of the request in the input
 * @property {number} index which row of values
 * @property {number} answer which of the answers to that row
 * @property {string} id the row's own id, "" if it has none
 * @property {string} text
 * @property {string} finish
 * @property {number} tokens
 * @property {string} error why there is no answer, or ""
 * @property {any[]} logprobs entries of tokens, if they were recorded
 */

const LINES = /\n/;
const TAG = "jaxllama page";
const OVER = new Set(["failed", "completed", "expired", "cancelled"]);

/**
 * Say whether nothing more will happen to a batch.
 * @param {Batch} batch
 */
export function isOver({ status }) {
  return OVER.has(status);
}

/** Sends requests about batches. */
export class Batches {
  /** @param {Server} server */
  constructor(server) {
    this.server = server;
  }

  /**
   * Return the batches that pages have started, newest first.
   * @returns {Promise<Batch[]>}
   */
  async list() {
    const { data } = await this.json("/v1/batches?limit=100");
    return data.filter((/** @type {Batch} */ { metadata }) => metadata?.made_by === TAG);
  }

  /**
   * @param {string} id
   * @returns {Promise<Batch>}
   */
  get(id) {
    return this.json(`/v1/batches/${id}`);
  }

  /**
   * Send the requests and start a batch.
   * @param {{endpoint: string, lines: string[], title: string}} given
   * @returns {Promise<Batch>}
   */
  async start({ endpoint, lines, title }) {
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", new Blob(lines.map((line) => `${line}\n`)), "batch.jsonl");
    const file = await (await this.server.fetch("/v1/files", { method: "POST", body: form })).json();
    return this.json("/v1/batches", {
      input_file_id: file.id,
      endpoint,
      completion_window: "24h",
      metadata: { made_by: TAG, title },
    });
  }

  /**
   * @param {string} id
   * @returns {Promise<Batch>}
   */
  cancel(id) {
    return this.json(`/v1/batches/${id}/cancel`, {});
  }

  /**
   * Delete the files of a batch that is over.
   * @param {Batch} batch
   */
  async delete({ input_file_id, output_file_id, error_file_id }) {
    for (const id of [input_file_id, output_file_id, error_file_id]) {
      if (id) await this.server.fetch(`/v1/files/${id}`, { method: "DELETE" });
    }
  }

  /**
   * Return the requests of a batch, as lines of JSON.
   * @param {Batch} batch
   * @returns {Promise<string[]>}
   */
  async input({ input_file_id }) {
    const response = await this.server.fetch(`/v1/files/${input_file_id}/content`);
    return (await response.text()).split(LINES).filter((line) => line.trim() !== "");
  }

  /**
   * Return the requests that are done, from a place of the output on, and the next place.
   * @param {string} id
   * @param {"output" | "errors"} kind
   * @param {number} start
   * @returns {Promise<{lines: string[], next: number}>}
   */
  async done(id, kind, start) {
    const response = await this.server.fetch(`/v1/batches/${id}/${kind}?start=${start}`);
    const bytes = await response.arrayBuffer();
    const lines = new TextDecoder().decode(bytes).split(LINES);
    lines.pop(); // after the last line end there is nothing
    return { lines, next: start + bytes.byteLength };
  }

  /**
   * @param {string} path
   * @param {unknown} [body] POST it; without, GET
   */
  async json(path, body) {
    const headers = { "Content-Type": "application/json" };
    const options = body === undefined ? {} : { method: "POST", headers, body: JSON.stringify(body) };
    return (await this.server.fetch(path, options)).json();
  }
}

/**
 * Return the line of one request. Its `custom_id` says which row it is for, and which answer to it.
 * @param {object} given
 * @param {string} given.endpoint
 * @param {number} given.index
 * @param {number} given.answer
 * @param {string} given.id of the row
 * @param {bigint} given.seed
 * @param {Record<string, unknown>} given.body
 */
export function requestLine({ endpoint, index, answer, id, seed, body }) {
  const custom = `${index}.${answer}${id && ` ${id.slice(0, 400)}`}`;
  // JSON.stringify writes no whole numbers above 2^53, and seeds may be larger.
  const text = `{"seed": ${seed}, ${JSON.stringify(body).slice(1)}`;
  return `{"custom_id": ${JSON.stringify(custom)}, "method": "POST", "url": ${JSON.stringify(endpoint)}, "body": ${text}}`;
}

/**
 * Return the body of a request, as its text, with more fields.
 * @param {string} line
 * @param {Record<string, unknown>} fields that it does not have
 */
export function bodyWith(line, fields) {
  const start = line.indexOf('"body": {') + 9;
  return `{${JSON.stringify(fields).slice(1, -1)}, ${line.slice(start, -1)}`;
}

/**
 * Read a line of the output or the errors of a batch.
 * @param {string} line
 * @returns {Answered}
 */
export function readAnswered(line) {
  const { id, custom_id, response, error } = JSON.parse(line);
  const [, index, answer, own = ""] = /^(\d+)\.(\d+)(?: (.*))?$/s.exec(custom_id) ?? ["", "0", "0"];
  const choice = response?.body?.choices?.[0];
  const wrong = error?.message ?? response?.body?.error?.message ?? "";
  return {
    line: Number(/\d+$/.exec(id)?.[0]),
    index: Number(index),
    answer: Number(answer),
    id: own,
    text: choice?.message?.content ?? choice?.text ?? "",
    finish: wrong ? "failed" : (choice?.finish_reason ?? ""),
    tokens: response?.body?.usage?.completion_tokens ?? 0,
    error: wrong,
    logprobs: choice?.logprobs ?? null,
  };
}

/**
 * Return what a request asks: its prompt, or its messages.
 * @param {string} line
 * @returns {{role: string, content: string}[]} the role of a prompt is ""
 */
export function askedIn(line) {
  const { body } = JSON.parse(line);
  return body.messages ?? [{ role: "", content: body.prompt }];
}
