/**
 * JSON as a tree that remembers where each value is in the text: of whole texts, and of texts that
 * are still being written. Numbers keep their spelling, objects the order of their keys. Used for
 * rows of files and for answers field by field; knows no page.
 */

/**
 * @typedef {object} JsonNode
 * @property {"object" | "array" | "string" | "number" | "literal"} kind
 * @property {number} start place of its first character
 * @property {number} end place after its last character
 * @property {boolean} isWhole false if the text ended inside of it
 * @property {string} text a string's value; a number or literal as it is written
 * @property {{key: string, value: JsonNode}[]} entries of an object
 * @property {JsonNode[]} items of an array
 */

const ESCAPED = new Map([...`"\\/`].map((each) => [each, each]));
for (const [name, value] of [["b", "\b"], ["f", "\f"], ["n", "\n"], ["r", "\r"], ["t", "\t"]]) {
  ESCAPED.set(name, value);
}
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const BEGUN = /-?\d+(?:\.\d*)?(?:[eE][+-]?\d*)?$/y; // a number that the end of a text cuts off
const LITERAL = /true|false|null|NaN|-?Infinity/y; // the last two as Python reads them
const BLANK = /[ \t\n\r]*/y;
const DEEPEST = 500;
const LONGEST_PLAIN = 16; // digits that Python writes without an exponent

/** A text is no JSON, at a place of it. */
export class JsonError extends Error {
  /**
   * @param {string} message
   * @param {number} place
   */
  constructor(message, place) {
    super(message);
    this.place = place;
  }
}

/**
 * Read one JSON value; throws JsonError. Of a text that is cut off, returns what is there: null if
 * there is nothing yet.
 * @param {string} text
 * @param {boolean} [mayBeCut]
 * @returns {JsonNode | null}
 */
export function readJson(text, mayBeCut = false) {
  const reader = new Reader(text, mayBeCut);
  const node = reader.value(0);
  reader.skip();
  if (node === null && !mayBeCut) throw new JsonError("the text is empty", 0);
  if (reader.place < text.length) throw new JsonError("there is more after the value", reader.place);
  return node;
}

class Reader {
  /**
   * @param {string} text
   * @param {boolean} mayBeCut
   */
  constructor(text, mayBeCut) {
    this.text = text;
    this.mayBeCut = mayBeCut;
    this.place = 0;
  }

  skip() {
    BLANK.lastIndex = this.place;
    BLANK.exec(this.text);
    this.place = BLANK.lastIndex;
  }

  get isOver() {
    return this.place >= this.text.length;
  }

  /**
   * @param {string} expected
   * @returns {never}
   */
  fail(expected) {
    const found = this.isOver ? "the end" : `“${this.text[this.place]}”`;
    throw new JsonError(`expected ${expected}, found ${found}`, this.place);
  }

  /**
   * Read a value; null if the text is cut before it.
   * @param {number} depth
   * @returns {JsonNode | null}
   */
  value(depth) {
    this.skip();
    if (this.isOver && this.mayBeCut) return null;
    if (depth > DEEPEST) this.fail(`at most ${DEEPEST} levels`);
    const character = this.text[this.place];
    if (character === "{") return this.object(depth);
    if (character === "[") return this.array(depth);
    if (character === '"') return this.string();
    return this.atom();
  }

  /**
   * @param {JsonNode["kind"]} kind
   * @returns {JsonNode}
   */
  node(kind) {
    return { kind, start: this.place, end: this.place, isWhole: false, text: "", entries: [], items: [] };
  }

  /**
   * Note where a value ends.
   * @param {JsonNode} node
   * @param {boolean} isWhole
   */
  close(node, isWhole) {
    if (!isWhole && !this.mayBeCut) this.fail("more");
    node.end = this.place;
    node.isWhole = isWhole;
    return node;
  }

  /** @param {number} depth */
  object(depth) {
    const node = this.node("object");
    this.place += 1;
    for (let isFirst = true; ; isFirst = false) {
      this.skip();
      if (this.isOver) return this.close(node, false);
      if (this.text[this.place] === "}") {
        this.place += 1;
        return this.close(node, true);
      }
      if (!isFirst && !this.comma()) this.fail("“,” or “}”");
      this.skip();
      if (this.isOver) return this.close(node, false);
      if (this.text[this.place] !== '"') this.fail("a name in quotes");
      const key = this.string();
      this.skip();
      if (!key.isWhole || this.isOver) return this.close(node, false);
      if (this.text[this.place] !== ":") this.fail("“:”");
      this.place += 1;
      const value = this.value(depth + 1);
      if (value === null) return this.close(node, false);
      // Of equal names the last one counts, at the place of the first, as in Python.
      const same = node.entries.find((entry) => entry.key === key.text);
      if (same) same.value = value;
      else node.entries.push({ key: key.text, value });
      if (!value.isWhole) return this.close(node, false);
    }
  }

  /** @param {number} depth */
  array(depth) {
    const node = this.node("array");
    this.place += 1;
    for (let isFirst = true; ; isFirst = false) {
      this.skip();
      if (this.isOver) return this.close(node, false);
      if (this.text[this.place] === "]") {
        this.place += 1;
        return this.close(node, true);
      }
      if (!isFirst && !this.comma()) this.fail("“,” or “]”");
      const value = this.value(depth + 1);
      if (value === null) return this.close(node, false);
      node.items.push(value);
      if (!value.isWhole) return this.close(node, false);
    }
  }

  comma() {
    const isThere = this.text[this.place] === ",";
    if (isThere) this.place += 1;
    return isThere;
  }

  string() {
    const { text } = this;
    const node = this.node("string");
    const parts = [];
    this.place += 1;
    for (;;) {
      const start = this.place;
      while (!this.isOver && text[this.place] !== '"' && text[this.place] !== "\\") {
        if (text.charCodeAt(this.place) < 32) this.fail("no line break or control character in a text");
        this.place += 1;
      }
      parts.push(text.slice(start, this.place));
      node.text = parts.join("");
      if (this.isOver) return this.close(node, false);
      if (text[this.place] === '"') {
        this.place += 1;
        return this.close(node, true);
      }
      const escape = text[this.place + 1];
      const code = text.slice(this.place + 2, this.place + 6);
      if (escape === undefined || (escape === "u" && code.length < 4)) {
        this.place = text.length;
        return this.close(node, false);
      }
      if (escape === "u") {
        if (!/^[\da-f]{4}$/i.test(code)) this.fail("four hexadecimal digits after \\u");
        parts.push(String.fromCharCode(parseInt(code, 16)));
        this.place += 6;
      } else {
        const value = ESCAPED.get(escape);
        if (value === undefined) this.fail("an escape such as \\n");
        parts.push(value);
        this.place += 2;
      }
    }
  }

  /** Read a number, true, false or null. */
  atom() {
    const { text } = this;
    for (const [pattern, kind] of /** @type {const} */ ([
      [LITERAL, "literal"],
      ...(this.mayBeCut ? [/** @type {const} */ ([BEGUN, "number"])] : []),
      [NUMBER, "number"],
    ])) {
      pattern.lastIndex = this.place;
      const found = pattern.exec(text);
      if (!found) continue;
      const node = this.node(kind);
      this.place += found[0].length;
      node.text = found[0];
      // At the end of a cut text, more digits may follow.
      return this.close(node, !(this.isOver && this.mayBeCut && kind === "number"));
    }
    const rest = text.slice(this.place);
    const isBegun = ["true", "false", "null", "-"].some((word) => word.startsWith(rest));
    if (!this.mayBeCut || !isBegun) this.fail("a value");
    const node = this.node("literal");
    node.text = rest;
    this.place = text.length;
    return this.close(node, false);
  }
}

/**
 * Write a value as Python's json module does, so that texts made here equal those of the command
 * line.
 * @param {JsonNode} node
 * @returns {string}
 */
export function pythonJson(node) {
  switch (node.kind) {
    case "object":
      return `{${node.entries.map(({ key, value }) => `${pythonText(key)}: ${pythonJson(value)}`).join(", ")}}`;
    case "array":
      return `[${node.items.map(pythonJson).join(", ")}]`;
    case "string":
      return pythonText(node.text);
    case "number":
      return pythonNumber(node.text);
    default:
      return /NaN|Infinity/.test(node.text) ? "null" : node.text;
  }
}

/** @param {string} text */
function pythonText(text) {
  return JSON.stringify(text); // equal but for lone surrogates, which UTF-8 cannot hold
}

/** @param {string} written */
function pythonNumber(written) {
  if (!/[.eE]/.test(written)) return String(BigInt(written));
  const value = Number(written);
  if (!Number.isFinite(value)) return "null";
  const [digits, power] = value.toExponential().split("e");
  const exponent = Number(power);
  if (value !== 0 && (exponent < -4 || exponent >= LONGEST_PLAIN)) {
    const sign = exponent < 0 ? "-" : "+";
    return `${digits}e${sign}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  if (Object.is(value, -0)) return "-0.0";
  const plain = exponent < 0 ? value.toFixed(digits.replace(/[-.]/g, "").length - 1 - exponent) : String(value);
  return plain.includes(".") ? plain : `${plain}.0`;
}

/**
 * Convert a value to a plain JavaScript value.
 * @param {JsonNode} node
 * @returns {any}
 */
export function plainValue(node) {
  switch (node.kind) {
    case "object":
      return Object.fromEntries(node.entries.map(({ key, value }) => [key, plainValue(value)]));
    case "array":
      return node.items.map(plainValue);
    case "string":
      return node.text;
    case "number":
      return parseFloat(node.text);
    default:
      return { true: true, false: false }[node.text] ?? null;
  }
}
