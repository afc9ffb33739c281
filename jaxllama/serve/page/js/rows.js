/**
 * Rows of named values: CSV with a line of names, one JSON object per line, or plain lines. The same
 * texts give the same rows as at the command line (cli/rows.py). Knows no page.
 */

import { JsonError, pythonJson, readJson } from "./json.js";

/** @typedef {import("./json.js").JsonNode} JsonNode */
/** @typedef {{line: number, values: Map<string, string | JsonNode>}} FileRow line: of its end */
/** @typedef {"csv" | "jsonl" | "txt"} RowKind */

const ENDINGS = new Map([["csv", "csv"], ["jsonl", "jsonl"], ["json", "jsonl"], ["txt", "txt"]]);
const NEW_LINE = /\r\n|\r|\n/;
export const TEXT = "text"; // the name of a line of plain text

/** The rows cannot be read; the message begins with the line. */
export class RowError extends Error {}

/**
 * Return the kind of rows by the name of their file; of pasted text by its beginning.
 * @param {string} name "" for pasted text
 * @param {string} text
 * @returns {RowKind}
 */
export function kindOf(name, text) {
  const found = ENDINGS.get(name.toLowerCase().split(".").at(-1) ?? "");
  if (name && found) return /** @type {RowKind} */ (found);
  return text.trimStart().startsWith("{") ? "jsonl" : "csv";
}

/**
 * Read all rows; throws RowError.
 * @param {RowKind} kind
 * @param {string} text
 * @returns {FileRow[]}
 */
export function readRows(kind, text) {
  const whole = text.replace(/^\ufeff/, "");
  if (kind === "csv") return csvRows(whole);
  const lines = whole.split(NEW_LINE).map((line, place) => ({ line, number: place + 1 }));
  const filled = lines.filter(({ line }) => line.trim() !== "");
  if (kind === "txt") {
    return filled.map(({ line, number }) => ({ line: number, values: new Map([[TEXT, line]]) }));
  }
  return filled.map(({ line, number }) => ({ line: number, values: objectOf(line, number) }));
}

/**
 * Return a value as the text that stands for it in a template.
 * @param {string | JsonNode} value
 */
export function textOf(value) {
  if (typeof value === "string") return value;
  return value.kind === "string" ? value.text : pythonJson(value);
}

/**
 * Return all names of values, in the order in which they occur.
 * @param {FileRow[]} rows
 */
export function namesOf(rows) {
  const names = new Set();
  for (const { values } of rows) for (const name of values.keys()) names.add(name);
  return /** @type {string[]} */ ([...names]);
}

/**
 * @param {string} line
 * @param {number} number
 */
function objectOf(line, number) {
  let node;
  try {
    node = readJson(line);
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    throw new RowError(`line ${number}: is not JSON (${error.message} at character ${error.place + 1})`);
  }
  if (node?.kind !== "object") throw new RowError(`line ${number}: is no JSON object`);
  return new Map(node.entries.map(({ key, value }) => [key, value]));
}

/** @param {string} text */
function csvRows(text) {
  const records = csvRecords(text);
  const [names, ...rest] = records;
  if (names === undefined) {
    throw new RowError("line 1: is empty; expected a line with the names of the columns");
  }
  const twice = names.cells.find((name, place) => names.cells.indexOf(name) < place);
  if (twice !== undefined) throw new RowError(`line 1: two columns are named “${twice}”`);
  /** @type {FileRow[]} */
  const rows = [];
  for (const { cells, line } of rest) {
    if (cells.length === 0) continue;
    if (cells.length !== names.cells.length) {
      throw new RowError(
        `line ${line}: has ${cells.length} cells; expected ${names.cells.length}, one per column`,
      );
    }
    rows.push({ line, values: new Map(names.cells.map((name, place) => [name, cells[place]])) });
  }
  return rows;
}

/**
 * Split CSV as Python's csv module does in its strict mode: a quote has a meaning at the beginning of
 * a cell only, and after its end there is a comma or the end of the line.
 * @param {string} text
 */
function csvRecords(text) {
  /** @type {{cells: string[], line: number}[]} */
  const records = [];
  let place = 0;
  let line = 0;
  while (place < text.length) {
    /** @type {string[]} */
    const cells = [];
    line += 1;
    for (let isOver = atLineEnd(text, place) > 0; !isOver; ) {
      let cell = "";
      if (text[place] === '"') {
        const quoted = quotedCell(text, place, line);
        ({ cell, place, line } = quoted);
      } else {
        const start = place;
        while (place < text.length && text[place] !== "," && atLineEnd(text, place) === 0) place += 1;
        cell = text.slice(start, place);
      }
      cells.push(cell);
      isOver = text[place] !== ",";
      if (!isOver) place += 1;
    }
    place += atLineEnd(text, place);
    records.push({ cells, line });
  }
  return records;
}

/**
 * @param {string} text
 * @param {number} start
 * @param {number} line
 */
function quotedCell(text, start, line) {
  let place = start + 1;
  let cell = "";
  for (;;) {
    const quote = text.indexOf('"', place);
    const part = text.slice(place, quote < 0 ? text.length : quote);
    line += (quote < 0 ? part.replace(/(\r\n|\r|\n)$/, "") : part).split(NEW_LINE).length - 1;
    if (quote < 0) throw new RowError(`line ${line}: is not CSV (unexpected end of data)`);
    cell += part;
    place = quote + 1;
    if (text[place] !== '"') break;
    cell += '"';
    place += 1;
  }
  if (place < text.length && text[place] !== "," && atLineEnd(text, place) === 0) {
    throw new RowError(`line ${line}: is not CSV (',' expected after '"')`);
  }
  return { cell, place, line };
}

/**
 * Return the length of the line end at a place, 0 if there is none.
 * @param {string} text
 * @param {number} place
 */
function atLineEnd(text, place) {
  if (text[place] === "\n") return 1;
  if (text[place] !== "\r") return 0;
  return text[place + 1] === "\n" ? 2 : 1;
}

/**
 * Return lines of CSV: the names, then the rows.
 * @param {string[]} names
 * @param {(string | number | null)[][]} rows
 */
export function toCsv(names, rows) {
  return [names, ...rows].map((cells) => `${cells.map(csvCell).join(",")}\n`).join("");
}

/** @param {string | number | null} value */
function csvCell(value) {
  const text = value === null ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
