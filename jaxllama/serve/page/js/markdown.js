/**
 * Converts the Markdown that models write to elements: code, bold, italic, headings, lists, rules.
 * Links, images and HTML stay plain text. Used for answers; knows nothing of messages.
 */

import { h } from "./dom.js";

/** @typedef {{kind: string, lines: string[]}} Block */

const FENCE = /^\s*(```+|~~~+)/;
const HEADING = /^#{1,6}\s+/;
const BULLET = /^\s*[-*+]\s+/;
const NUMBER = /^\s*\d{1,9}[.)]\s+/;
const RULE = /^\s*(?:-{3,}|\*{3,}|_{3,})\s*$/;
// Code first: its content has no other markup.
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?![\w*])/gs;

/** Shows a growing text, updating only the blocks that changed. */
export class MarkdownView {
  constructor() {
    this.element = h("div", { class: "prose" });
    /** @type {string[]} */
    this.shown = [];
  }

  /** @param {string} text */
  show(text) {
    const blocks = splitBlocks(text);
    const keys = blocks.map(({ kind, lines }) => `${kind}\n${lines.join("\n")}`);
    let same = 0;
    while (same < keys.length && keys[same] === this.shown[same]) same += 1;
    while (this.element.children.length > same) this.element.lastChild?.remove();
    this.element.append(...blocks.slice(same).map(toElement));
    this.shown = keys;
  }
}

/**
 * Split a text into blocks, in order.
 * @param {string} text
 * @returns {Block[]}
 */
export function splitBlocks(text) {
  /** @type {Block[]} */
  const blocks = [];
  let fence = "";
  let open = false; // whether the next line may continue the last block
  for (const line of text.split("\n")) {
    const last = blocks.at(-1);
    if (fence) {
      if (line.trim().startsWith(fence)) fence = "";
      else last?.lines.push(line);
      continue;
    }
    const kind = kindOf(line);
    if (kind === "blank") {
      open = false;
    } else if (kind === "code") {
      fence = /** @type {RegExpExecArray} */ (FENCE.exec(line))[1];
      blocks.push({ kind, lines: [] });
      open = false;
    } else if (last && last.kind === kind && (open || isList(kind))) {
      last.lines.push(line);
      open = true;
    } else if (last && open && isList(last.kind) && kind === "p") {
      last.lines.push(line);
    } else {
      blocks.push({ kind, lines: [line] });
      open = kind !== "h3" && kind !== "hr";
    }
  }
  return blocks;
}

/** @param {string} line */
function kindOf(line) {
  if (line.trim() === "") return "blank";
  if (FENCE.test(line)) return "code";
  if (HEADING.test(line)) return "h3";
  if (RULE.test(line)) return "hr";
  if (BULLET.test(line)) return "ul";
  if (NUMBER.test(line)) return "ol";
  return "p";
}

/** @param {string} kind */
function isList(kind) {
  return kind === "ul" || kind === "ol";
}

/**
 * @param {Block} block
 * @returns {HTMLElement}
 */
function toElement({ kind, lines }) {
  const text = lines.join("\n");
  if (kind === "code") return h("pre", { tabindex: 0 }, h("code", {}, text));
  if (kind === "hr") return h("hr");
  if (kind === "h3") return h("h3", {}, ...inline(text.replace(HEADING, "")));
  if (kind === "ul" || kind === "ol") return toList(kind, lines);
  return h("p", {}, ...inline(text));
}

/**
 * @param {"ul" | "ol"} kind
 * @param {string[]} lines
 */
function toList(kind, lines) {
  const mark = kind === "ul" ? BULLET : NUMBER;
  /** @type {string[]} */
  const items = [];
  for (const line of lines) {
    if (mark.test(line)) items.push(line.replace(mark, ""));
    else items[items.length - 1] += `\n${line.trim()}`;
  }
  const start = kind === "ol" ? Number.parseInt(lines[0], 10) : null;
  return h(kind, { start }, ...items.map((item) => h("li", {}, ...inline(item))));
}

/**
 * @param {string} text
 * @returns {(Node | string)[]}
 */
function inline(text) {
  /** @type {(Node | string)[]} */
  const parts = [];
  let place = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, , code, bold, italic] = match;
    parts.push(text.slice(place, match.index));
    if (code !== undefined) parts.push(h("code", {}, code));
    else if (bold !== undefined) parts.push(h("strong", {}, ...inline(bold)));
    else parts.push(h("em", {}, ...inline(italic)));
    place = (match.index ?? 0) + whole.length;
  }
  parts.push(text.slice(place));
  return parts;
}
