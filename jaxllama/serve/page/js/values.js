/**
 * Converts between entries of a control and values of a knob: numbers, lists, numbers by token.
 * Used by controls.js; returns errors as text, never throws.
 */

/** @typedef {import("./api.js").Knob} Knob */
/** @typedef {HTMLInputElement | HTMLTextAreaElement} Field */
/** @typedef {{value: unknown, wrong: string}} Entry */

const ESCAPES = new Map([["\\n", "\n"], ["\\t", "\t"], ["\\\\", "\\"]]);
const PAIR = /^\s*(\d+)\s*[=:]\s*(\S+)\s*$/;

/**
 * Return the value that a request without this knob gets: the recommended one, else "off".
 * @param {Knob} knob
 */
export function startOf({ recommended, off }) {
  return recommended ?? off;
}

/**
 * Return the value of a field; undefined if it is empty or equals the knob's default.
 * @param {Knob} knob
 * @param {Field} field
 * @returns {Entry}
 */
export function readEntry(knob, field) {
  if (field instanceof HTMLInputElement && field.type === "checkbox") {
    return right(field.checked === Boolean(startOf(knob)) ? undefined : field.checked);
  }
  if (field instanceof HTMLInputElement && field.validity.badInput) return wrong("expected a number");
  if (field.value === "") return right(undefined);
  if (knob.by_token) return readPairs(knob, field.value);
  if (knob.width !== null) return readList(knob, field.value);
  const entry = readOne(knob, field.value);
  return entry.value === startOf(knob) ? right(undefined) : entry;
}

/**
 * Show a value in a field; undefined shows the model maker's recommendation. The value may come
 * from a file, so it may be of any type.
 * @param {Knob} knob
 * @param {Field} field
 * @param {any} value
 */
export function writeEntry(knob, field, value) {
  if (field instanceof HTMLInputElement && field.type === "checkbox") {
    field.checked = Boolean(value ?? startOf(knob));
  } else if (value === undefined || value === null) {
    field.value = String(knob.recommended ?? "");
  } else if (knob.by_token && typeof value === "object") {
    field.value = Object.entries(value).map(([id, number]) => `${id} = ${number}`).join("\n");
  } else if (Array.isArray(value)) {
    field.value = value.map((each) => escaped(String(each))).join("\n");
  } else {
    field.value = String(value);
  }
}

/**
 * @param {Knob} knob
 * @param {string} text
 * @returns {Entry}
 */
function readOne({ type, low, high, width, tokens, phrases }, text) {
  if (type === "str" || phrases) return right(width === null ? text : unescaped(text));
  const value = Number(text.trim() || "x");
  if (!Number.isFinite(value)) return wrong(`${text.trim() || "nothing"} is no number`);
  if (tokens && value < 0) return wrong(`${text} is no token id`);
  if (type === "int" && !Number.isSafeInteger(value)) {
    return wrong(`${text} is no whole number that a page can hold`);
  }
  if (low !== null && value < low) return wrong(`${value} is too low: at least ${low}`);
  if (high !== null && value > high) return wrong(`${value} is too high: at most ${high}`);
  return right(value);
}

/**
 * @param {Knob} knob
 * @param {string} text
 * @returns {Entry}
 */
function readList(knob, text) {
  const entries = linesOf(text).map((line) => readOne(knob, line));
  const bad = entries.find((entry) => entry.wrong);
  if (bad) return bad;
  if (entries.length > (knob.width ?? 0)) return wrong(`at most ${knob.width} are allowed`);
  return right(entries.length > 0 ? entries.map((entry) => entry.value) : undefined);
}

/**
 * @param {Knob} knob
 * @param {string} text
 * @returns {Entry}
 */
function readPairs(knob, text) {
  /** @type {[string, unknown][]} */
  const pairs = [];
  for (const line of linesOf(text)) {
    const match = PAIR.exec(line);
    if (!match) return wrong(`“${line.trim()}” is not: token id = number`);
    const entry = readOne(knob, match[2]);
    if (entry.wrong) return entry;
    pairs.push([match[1], entry.value]);
  }
  if (pairs.length > (knob.width ?? 0)) return wrong(`at most ${knob.width} are allowed`);
  return right(pairs.length > 0 ? Object.fromEntries(pairs) : undefined);
}

/** @param {string} text */
function linesOf(text) {
  return text.split("\n").filter((line) => line !== "");
}

/**
 * Convert the escapes \n, \t and \\ to a line break, a tab and a backslash.
 * @param {string} text
 */
function unescaped(text) {
  return text.replace(/\\[nt\\]/g, (written) => ESCAPES.get(written) ?? written);
}

/** @param {string} text */
function escaped(text) {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t");
}

/**
 * @param {unknown} value
 * @returns {Entry}
 */
function right(value) {
  return { value, wrong: "" };
}

/**
 * @param {string} words
 * @returns {Entry}
 */
function wrong(words) {
  return { value: undefined, wrong: words };
}
