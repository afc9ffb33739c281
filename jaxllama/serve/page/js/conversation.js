/**
 * A conversation: plain data, its conversion to a request, and the check of data from outside (a
 * file, or storage written by another program). Knows neither page, storage nor server.
 */

/** @typedef {{text: string, logprob: number}} Alternative */

/**
 * @typedef {object} Token one token of an answer; without logprob, text without recorded probabilities
 * @property {string} text
 * @property {number} [logprob] under the model
 * @property {number} [sampled] log-probability under the distribution it was drawn from
 * @property {Alternative[]} [top] likeliest under the model
 * @property {Alternative[]} [topSampled] likeliest as sampled
 */

/**
 * @typedef {object} Stats
 * @property {number} prompt tokens of the prompt
 * @property {number} reused prompt tokens found in the cache
 * @property {number} dropped messages left out because the context was full
 * @property {number} generated
 * @property {number} first seconds to the first token
 * @property {number} rate tokens per second after the first
 */

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {"user" | "assistant"} role
 * @property {string} content
 * @property {Token[]} [tokens]
 * @property {Stats} [stats]
 * @property {string} [finish] why the answer ended: stop, length, stopped or error
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title given by the reader, or "" for the start of its first message
 * @property {number} updated milliseconds since 1970
 * @property {string} system
 * @property {string} format name of a prompt format, or "" for the model's own
 * @property {Record<string, unknown>} knobs only the changed ones
 * @property {Message[]} messages
 */

const TITLE_LENGTH = 60;

/**
 * Make an empty conversation with the settings of another.
 * @param {Conversation} [like]
 * @returns {Conversation}
 */
export function newConversation(like) {
  const { system = "", format = "", knobs = {} } = like ?? {};
  return {
    id: crypto.randomUUID(),
    title: "",
    updated: Date.now(),
    system,
    format,
    knobs: structuredClone(knobs),
    messages: [],
  };
}

/**
 * @param {Message["role"]} role
 * @param {string} content
 * @returns {Message}
 */
export function newMessage(role, content) {
  return { id: crypto.randomUUID(), role, content };
}

/**
 * Return the title of a conversation.
 * @param {Conversation} conversation
 */
export function titleOf({ title, messages }) {
  if (title) return title;
  const first = messages.find((message) => message.content.trim())?.content.trim() ?? "";
  const line = first.split("\n")[0];
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line || "New chat";
}

/**
 * Return the messages to send for an answer at place `index`; with `through`, the message there is
 * the last one, and the answer continues it.
 * @param {Conversation} conversation
 * @param {number} index
 * @param {boolean} through
 */
export function turnsBefore({ system, messages }, index, through) {
  const told = system.trim() ? [{ role: "system", content: system }] : [];
  const said = messages.slice(0, through ? index + 1 : index);
  return [...told, ...said.map(({ role, content }) => ({ role, content }))];
}

/**
 * Convert data from outside to a conversation; throws an Error that says what is wrong with it.
 * Unknown fields are dropped.
 * @param {any} data
 * @returns {Conversation}
 */
export function readConversation(data) {
  expect(isRecord(data), "a conversation is no object");
  const { id, title = "", updated, system = "", format = "", knobs = {}, messages } = data;
  expect(isText(id) && id !== "", "a conversation has no id");
  expect(isText(title) && isText(system) && isText(format), "title, system or format is no text");
  expect(Number.isFinite(updated), "updated is no time");
  expect(isRecord(knobs), "knobs is no object");
  expect(Array.isArray(messages), "messages is no list");
  const read = messages.map(readMessage);
  const ids = new Set(read.map((/** @type {Message} */ message) => message.id));
  expect(ids.size === read.length, "two messages have the same id");
  return { id, title, updated, system, format, knobs: { ...knobs }, messages: read };
}

/**
 * @param {any} data
 * @param {number} place
 * @returns {Message}
 */
function readMessage(data, place) {
  expect(isRecord(data), `message ${place} is no object`);
  const { id, role, content, tokens, stats, finish } = data;
  expect(isText(id) && id !== "", `message ${place} has no id`);
  expect(role === "user" || role === "assistant", `message ${place} has an unknown role`);
  expect(isText(content), `message ${place} has no text`);
  /** @type {Message} */
  const message = { id, role, content };
  if (tokens !== undefined) {
    expect(Array.isArray(tokens), `message ${place}: tokens is no list`);
    message.tokens = tokens.map((/** @type {any} */ token) => readToken(token, place));
  }
  if (stats !== undefined) message.stats = readStats(stats, place);
  if (finish !== undefined) {
    expect(isText(finish), `message ${place}: finish is no text`);
    message.finish = finish;
  }
  return message;
}

/**
 * @param {any} data
 * @param {number} place
 * @returns {Token}
 */
function readToken(data, place) {
  const wrong = `message ${place} has a token that is none`;
  expect(isRecord(data) && isText(data.text), wrong);
  /** @type {Token} */
  const token = { text: data.text };
  for (const name of /** @type {const} */ (["logprob", "sampled"])) {
    if (data[name] === undefined) continue;
    expect(Number.isFinite(data[name]), wrong);
    token[name] = data[name];
  }
  for (const name of /** @type {const} */ (["top", "topSampled"])) {
    if (data[name] === undefined) continue;
    expect(Array.isArray(data[name]), wrong);
    token[name] = data[name].map((/** @type {any} */ other) => {
      expect(isRecord(other) && isText(other.text) && Number.isFinite(other.logprob), wrong);
      return { text: other.text, logprob: other.logprob };
    });
  }
  return token;
}

/**
 * @param {any} data
 * @param {number} place
 * @returns {Stats}
 */
function readStats(data, place) {
  const names = /** @type {const} */ ([
    "prompt",
    "reused",
    "dropped",
    "generated",
    "first",
    "rate",
  ]);
  const stats = isRecord(data) ? { dropped: 0, ...data } : {}; // older files do not have it
  const numbers = names.every((name) => Number.isFinite(stats[name]));
  expect(numbers, `message ${place}: stats are no numbers`);
  return /** @type {Stats} */ (Object.fromEntries(names.map((name) => [name, stats[name]])));
}

/**
 * @param {boolean} holds
 * @param {string} otherwise
 */
function expect(holds, otherwise) {
  if (!holds) throw new Error(otherwise);
}

/** @param {unknown} value */
function isText(value) {
  return typeof value === "string";
}

/** @param {unknown} value */
function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
