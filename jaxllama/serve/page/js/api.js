/**
 * The server's API as the page uses it, and its errors with advice. Knows HTTP and the JSON of the
 * chat API; knows nothing of the page.
 */

import { readEvents } from "./events.js";

/** @typedef {import("./conversation.js").Token} Token */
/** @typedef {import("./conversation.js").Alternative} Alternative */

/**
 * @typedef {object} Delta one event of a streamed answer
 * @property {string} text
 * @property {string} reasoning
 * @property {{index: number, id: string, name: string, arguments: string}[]} calls pieces of tool calls
 * @property {Token[]} tokens
 * @property {string | null} finish why the answer ended, in the last delta of its choice
 * @property {{prompt: number, generated: number, reused: number,
 *   dropped: number} | null} usage
 */

/**
 * @typedef {object} ModelName
 * @property {string} name
 * @property {boolean} isAdapter
 */

/**
 * @typedef {object} Knob
 * @property {string} name
 * @property {string} type int, float, bool or str
 * @property {any} off
 * @property {any} [recommended] the model maker's value, which a request without this knob gets
 * @property {number | null} low
 * @property {number | null} high
 * @property {number | null} width null: one number; n: a list of at most n
 * @property {boolean} by_token an object from token ids to numbers
 * @property {boolean} [tokens] a list of token ids
 * @property {boolean} [phrases] a list of texts
 * @property {number} [longest] characters of a text
 * @property {string[]} [examples] of a text
 * @property {Record<string, string>} [words] names that a text may have, with their meaning
 * @property {string} help
 */

/**
 * @typedef {object} Sampler
 * @property {string} name
 * @property {string} doc
 * @property {string} kind
 * @property {number} order
 * @property {Knob[]} knobs
 * @property {{microseconds: number, where: string} | null} cost per row and token
 */
/** @typedef {{name: string, doc: string, chosen: boolean}} Format */
/** @typedef {{name: string, doc: string, knobs: Record<string, unknown>}} Preset */
/** @typedef {{samplers: Sampler[], formats: Format[], presets: Preset[], core: any[]}} Plugins */

const KEY = "jaxllama.key";

/** Advice for the reader, by HTTP status. */
const REMEDIES = new Map([
  [0, "Check that the server is still running and reachable, then try again."],
  [401, "Enter the API key of this server under Settings, then try again."],
  [403, "Check the API key under Settings, and that the page's address is allowed."],
  [404, "The server may have another version than this page: reload the page."],
  [408, "The server gave up waiting: try again."],
  [413, "Shorten the conversation: delete early messages."],
  [429, "The server is busy: wait a moment, then try again."],
  [500, "The server failed at this request; the reason is in its log. Try again."],
  [503, "The server is overloaded, starting or stopping: wait a moment, then try again."],
]);

/** A request was refused, failed, or got no answer. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {number} [status] of HTTP; 0 if there was no answer
   * @param {string | null} [param] the field of the request that caused the error
   * @param {string | null} [wait] seconds after which to try again
   */
  constructor(message, status = 0, param = null, wait = null) {
    super(message);
    this.status = status;
    this.param = param;
    this.wait = wait;
  }

  /** Advice for the reader; "" if the message itself says what to do. */
  get remedy() {
    if (this.wait !== null && /^\d+$/.test(this.wait)) return `Try again in ${this.wait} s.`;
    return REMEDIES.get(this.status) ?? "";
  }
}

/** Sends requests to the server that this page came from. */
export class Server {
  constructor() {
    this.key = readKey();
  }

  /** @param {string} key kept until the tab is closed */
  useKey(key) {
    this.key = key.trim();
    try {
      sessionStorage.setItem(KEY, this.key);
    } catch {
      // Without storage the key holds until the page is reloaded.
    }
  }

  /** @returns {Promise<Plugins>} */
  async plugins() {
    return (await this.fetch("/v1/plugins")).json();
  }

  /** @returns {Promise<ModelName[]>} the models, the default one first, and their adapters */
  async models() {
    const { data } = await (await this.fetch("/v1/models")).json();
    return data
      .filter((/** @type {any} */ card) => card.dimensions === undefined)
      .map((/** @type {any} */ card) => ({ name: card.id, isAdapter: card.parent !== undefined }));
  }

  /**
   * Request an answer and yield its deltas as they arrive.
   * @param {Record<string, unknown>} request
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<Delta>}
   */
  async *chat(request, signal) {
    const body = JSON.stringify({
      ...request,
      stream: true,
      stream_options: { include_usage: true },
    });
    const headers = { "Content-Type": "application/json" };
    const response = await this.fetch("/v1/chat/completions", {
      method: "POST",
      body,
      headers,
      signal,
    });
    if (response.body === null) throw new ServerError("the server sent an empty answer");
    let over = false;
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw refusal(event.error, event.error.status ?? 500, null);
      const delta = readDelta(event);
      over ||= delta.finish !== null;
      yield delta;
    }
    if (!over) throw new ServerError("the server broke off in the middle of the answer");
  }

  /**
   * Request an answer to a prompt or to messages, and yield its tokens as they arrive.
   * @param {Record<string, unknown>} request
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<{text: string, logprob: number}>}
   */
  async *tokens(request, signal) {
    if (request.messages) {
      for await (const { tokens } of this.chat({ ...request, logprobs: true, top_logprobs: 0 }, signal)) {
        for (const { text, logprob = 0 } of tokens) yield { text, logprob };
      }
      return;
    }
    const response = await this.fetch("/v1/completions", {
      method: "POST",
      body: JSON.stringify({ ...request, stream: true, logprobs: 0 }),
      headers: { "Content-Type": "application/json" },
      signal,
    });
    if (response.body === null) throw new ServerError("the server sent an empty answer");
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw refusal(event.error, event.error.status ?? 500, null);
      const found = event.choices?.[0]?.logprobs;
      for (const [place, text] of (found?.tokens ?? []).entries()) {
        yield { text, logprob: found.token_logprobs[place] ?? 0 };
      }
    }
    throw new ServerError("the server broke off in the middle of the answer");
  }

  /**
   * Send a value as JSON and return the JSON of the answer.
   * @param {string} path
   * @param {unknown} value
   * @returns {Promise<any>}
   */
  async post(path, value) {
    const headers = { "Content-Type": "application/json" };
    return (await this.fetch(path, { method: "POST", body: JSON.stringify(value), headers })).json();
  }

  /**
   * Send a request; a refusal of the server is a response like others.
   * @param {string} path
   * @param {RequestInit} [options]
   */
  send(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    return fetch(path, { ...options, headers, redirect: "error" });
  }

  /**
   * Send a request; throws a ServerError if the server refuses it.
   * @param {string} path
   * @param {RequestInit} [options]
   */
  async fetch(path, options = {}) {
    const response = await this.send(path, options);
    if (!response.ok) {
      const body = await response.json().catch(() => ({}));
      const error = typeof body.error === "string" ? { message: body.error, param: body.field } : body.error;
      throw refusal(error ?? {}, response.status, response.headers.get("Retry-After"));
    }
    return response;
  }
}

/**
 * Convert any error to a ServerError.
 * @param {unknown} error
 */
export function asServerError(error) {
  if (error instanceof ServerError) return error;
  if (error instanceof SyntaxError) {
    return new ServerError("the server's answer cannot be read", 404);
  }
  return new ServerError("the server does not answer");
}

/**
 * @param {{message?: string, param?: string | null}} error
 * @param {number} status
 * @param {string | null} wait
 */
function refusal(error, status, wait) {
  const message = error.message ?? `the server answered ${status} without saying why`;
  return new ServerError(message, status, error.param ?? null, wait);
}

/**
 * @param {any} event a chunk of /v1/chat/completions
 * @returns {Delta}
 */
function readDelta(event) {
  const choice = event.choices?.[0];
  const { usage } = event;
  return {
    text: choice?.delta?.content ?? "",
    reasoning: choice?.delta?.reasoning_content ?? "",
    calls: (choice?.delta?.tool_calls ?? []).map(readCall),
    tokens: (choice?.logprobs?.content ?? []).map(readToken),
    finish: choice?.finish_reason ?? null,
    usage: usage && {
      prompt: usage.prompt_tokens,
      generated: usage.completion_tokens,
      reused: usage.prompt_tokens_details?.cached_tokens ?? 0,
      dropped: usage.prompt_tokens_details?.dropped_messages ?? 0,
    },
  };
}

/** @param {any} piece of a tool call */
function readCall({ index, id = "", function: { name = "", arguments: text = "" } }) {
  return { index, id, name: name ?? "", arguments: text ?? "" };
}

/**
 * @param {any} entry
 * @returns {Token}
 */
function readToken(entry) {
  return {
    ...readAlternative(entry),
    sampled: entry.sampled_logprob,
    top: entry.top_logprobs?.map(readAlternative),
    topSampled: entry.top_sampled_logprobs?.map(readAlternative),
  };
}

/**
 * @param {any} entry
 * @returns {Alternative}
 */
function readAlternative(entry) {
  const { token, bytes, logprob, control } = entry;
  if (control) return { text: token, logprob, isControl: true };
  if (!token.includes("\ufffd") || !bytes) return { text: token, logprob };
  // A part of a character: its bytes are shown in place of a text.
  const spelled = bytes.map((/** @type {number} */ byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return { text: `⟨${spelled}⟩`, logprob, bytes };
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}
