/**
 * A conversation: plain data, its conversion to a request, and the check of data from outside (a
 * file, or storage written by another program). Knows neither page, storage nor server.
 */

import { allMessages } from "./branches.js";

/** @typedef {{text: string, logprob: number, bytes?: number[], isControl?: boolean}} Alternative */
/** @typedef {{id: string, name: string, arguments: string}} ToolCall */

/**
 * @typedef {object} Token one token of an answer; without logprob, text without recorded probabilities
 * @property {string} text
 * @property {number[]} [bytes] of a token that is only a part of a character
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
 * @property {"user" | "assistant" | "tool"} role
 * @property {string} content
 * @property {string} [reasoning] thoughts before the answer
 * @property {ToolCall[]} [calls] of an answer
 * @property {string} [callId] the call that a tool's result belongs to
 * @property {import("./branches.js").Fork} [fork] other versions of this message and of what follows
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
 * @property {string} model name of an adapter, or "" for the server's model
 * @property {string} tools the functions that the model may call, as JSON
 * @property {Record<string, unknown>} knobs only the changed ones
 * @property {Message[]} messages
 */

const ROLES = new Set(["user", "assistant", "tool"]);
const TITLE_LENGTH = 60;
const EXCERPT_BEFORE = 12; // characters around what was searched
const EXCERPT_AFTER = 100;

/**
 * Make an empty conversation with the settings of another.
 * @param {Conversation} [like]
 * @returns {Conversation}
 */
export function newConversation(like) {
  const { system = "", format = "", model = "", tools = "", knobs = {} } = like ?? {};
  return {
    id: crypto.randomUUID(),
    title: "",
    updated: Date.now(),
    system,
    format,
    model,
    tools,
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
  return [...told, ...said.map(turnOf)];
}

/**
 * Return a message as the API has it.
 * @param {Message} message
 */
function turnOf({ role, content, reasoning, calls, callId }) {
  return {
    role,
    content,
    ...(reasoning && { reasoning_content: reasoning }),
    ...(calls && {
      tool_calls: calls.map(({ id, name, arguments: text }) => ({
        id,
        type: "function",
        function: { name, arguments: text },
      })),
    }),
    ...(callId !== undefined && { tool_call_id: callId }),
  };
}

/**
 * Whether a message has nothing in it.
 * @param {Message} message
 */
export function isEmpty({ content, reasoning, calls }) {
  return content === "" && !reasoning && !calls;
}

/**
 * Return where the title or a message of any branch has a text, with what is around it; "" in an
 * excerpt if the title has it, null if nothing has it.
 * @param {Conversation} conversation
 * @param {string} wanted in lower case
 * @returns {string | null}
 */
export function excerptWith(conversation, wanted) {
  if (titleOf(conversation).toLowerCase().includes(wanted)) return "";
  for (const { content } of allMessages(conversation.messages)) {
    const place = content.toLowerCase().indexOf(wanted);
    if (place < 0) continue;
    const start = Math.max(0, place - EXCERPT_BEFORE);
    return `${start > 0 ? "…" : ""}${content.slice(start, place + EXCERPT_AFTER)}`;
  }
  return null;
}

/**
 * Convert data from outside to a conversation; throws an Error that says what is wrong with it.
 * Unknown fields are dropped.
 * @param {any} data
 * @returns {Conversation}
 */
export function readConversation(data) {
  expect(isRecord(data), "a conversation is no object");
  const { id, title = "", updated, knobs = {}, messages } = data;
  const { system = "", format = "", model = "", tools = "" } = data;
  expect(isText(id) && id !== "", "a conversation has no id");
  const texts = Object.entries({ title, system, format, model, tools });
  for (const [name, text] of texts) expect(isText(text), `${name} is no text`);
  expect(Number.isFinite(updated), "updated is no time");
  expect(isRecord(knobs), "knobs is no object");
  const read = readLine(messages);
  const ids = [...allMessages(read)].map((message) => message.id);
  expect(new Set(ids).size === ids.length, "two messages have the same id");
  return { id, title, updated, system, format, model, tools, knobs: { ...knobs }, messages: read };
}

/**
 * @param {any} messages
 * @returns {Message[]}
 */
function readLine(messages) {
  expect(Array.isArray(messages), "messages is no list");
  return messages.map(readMessage);
}

/**
 * @param {any} data
 * @param {number} place
 * @returns {Message}
 */
function readMessage(data, place) {
  expect(isRecord(data), `message ${place} is no object`);
  const { id, role, content, tokens, stats, finish, reasoning, calls, callId, fork } = data;
  expect(isText(id) && id !== "", `message ${place} has no id`);
  expect(ROLES.has(role), `message ${place} has an unknown role`);
  expect(isText(content), `message ${place} has no text`);
  /** @type {Message} */
  const message = { id, role, content };
  if (tokens !== undefined) {
    expect(Array.isArray(tokens), `message ${place}: tokens is no list`);
    message.tokens = tokens.map((/** @type {any} */ token) => readToken(token, place));
  }
  if (stats !== undefined) message.stats = readStats(stats, place);
  for (const [name, text] of Object.entries({ finish, reasoning, callId })) {
    if (text === undefined) continue;
    expect(isText(text), `message ${place}: ${name} is no text`);
    message[/** @type {"finish" | "reasoning" | "callId"} */ (name)] = text;
  }
  if (calls !== undefined) {
    expect(Array.isArray(calls), `message ${place}: calls is no list`);
    message.calls = calls.map((/** @type {any} */ call) => readCall(call, place));
  }
  if (fork !== undefined) message.fork = readFork(fork, place);
  return message;
}

/**
 * @param {any} data
 * @param {number} place
 * @returns {ToolCall}
 */
function readCall(data, place) {
  const { id, name, arguments: text } = isRecord(data) ? data : {};
  expect(isText(id) && isText(name) && isText(text), `message ${place} has a call that is none`);
  return { id, name, arguments: text };
}

/**
 * @param {any} data
 * @param {number} place
 * @returns {import("./branches.js").Fork}
 */
function readFork(data, place) {
  const { shown, others } = isRecord(data) ? data : {};
  const isFork = Array.isArray(others) && others.length > 0 && Number.isInteger(shown);
  expect(isFork && shown >= 0 && shown <= others.length, `message ${place} has a fork that is none`);
  const lines = others.map(readLine);
  const areLines = lines.every((/** @type {Message[]} */ [first]) => first !== undefined && !first.fork);
  expect(areLines, `message ${place} has a branch that is none`);
  return { shown, others: lines };
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
  if (data.bytes !== undefined) token.bytes = readBytes(data.bytes, wrong);
  for (const name of /** @type {const} */ (["top", "topSampled"])) {
    if (data[name] === undefined) continue;
    expect(Array.isArray(data[name]), wrong);
    token[name] = data[name].map((/** @type {any} */ other) => {
      expect(isRecord(other) && isText(other.text) && Number.isFinite(other.logprob), wrong);
      return {
        text: other.text,
        logprob: other.logprob,
        ...(other.bytes !== undefined && { bytes: readBytes(other.bytes, wrong) }),
        ...(other.isControl === true && { isControl: true }),
      };
    });
  }
  return token;
}

/**
 * @param {any} data
 * @param {string} wrong
 * @returns {number[]}
 */
function readBytes(data, wrong) {
  const isByte = (/** @type {unknown} */ each) => Number.isInteger(each) && Number(each) >= 0 && Number(each) < 256;
  expect(Array.isArray(data) && data.every(isByte), wrong);
  return data;
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
