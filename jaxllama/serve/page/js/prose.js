/**
 * Makes elements of marked's tokens. HTML stays the text that it is, images are not loaded, and a
 * link leads only to http, https or mail. Used by markdown.js; knows neither messages nor parsing.
 */

import { CodeView } from "./code.js";
import { h } from "./dom.js";
import { formulaElement } from "./formula.js";

/** @typedef {import("./blocks.js").MarkdownToken} MarkdownToken */
/** @typedef {(Node | string)[]} Parts */

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,6}));/gi;
const NAMED = new Map(
  Object.entries({
    amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®",
    hellip: "…", mdash: "—", ndash: "–", laquo: "«", raquo: "»", times: "×", middot: "·",
    deg: "°", euro: "€", rarr: "→", larr: "←", le: "≤", ge: "≥", ne: "≠", para: "¶", sect: "§",
  }),
);

/**
 * Make the element of a block; null if the block shows nothing.
 * @param {MarkdownToken} token
 * @returns {HTMLElement | null}
 */
export function blockElement(token) {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      return h(headingTag(token.depth), {}, ...inline(token.tokens));
    case "code":
      return codeElement(token);
    case "hr":
      return h("hr");
    case "blockquote":
      return h("blockquote", {}, ...blocks(token.tokens));
    case "list":
      return listElement(token);
    case "table":
      return tableElement(token);
    case "formula-block":
      return h("div", { class: "formula", tabindex: 0 }, formulaElement(token.text, true));
    case "html":
      return h("p", {}, token.raw.replace(/\n+$/, ""));
    default:
      return h("p", {}, ...inline(token.tokens ?? [token]));
  }
}

/** @type {WeakMap<HTMLElement, CodeView>} */
const codeViews = new WeakMap();

/** @param {MarkdownToken} token */
function codeElement(token) {
  const view = new CodeView(token);
  codeViews.set(view.element, view);
  return view.element;
}

/**
 * Let the element of a block show more of the same block; false if it needs a new element.
 * @param {HTMLElement} element
 * @param {MarkdownToken} old
 * @param {MarkdownToken} token
 */
export function grow(element, old, token) {
  const view = codeViews.get(element);
  if (view === undefined || token.type !== "code" || token.lang !== old.lang) return false;
  view.show(token.text);
  return true;
}

/** @param {MarkdownToken[]} tokens */
function blocks(tokens) {
  return tokens.map(blockElement);
}

/**
 * The page has headings of its own above an answer's.
 * @param {number} depth
 */
function headingTag(depth) {
  return /** @type {"h3" | "h4" | "h5" | "h6"} */ (`h${Math.min(depth + 2, 6)}`);
}

/** @param {MarkdownToken} token */
function listElement({ ordered, start, items }) {
  const first = ordered && Number(start) !== 1 ? start : null;
  const tasks = items.some((/** @type {any} */ item) => item.task);
  const attributes = { start: first, class: tasks ? "tasks" : null };
  return h(ordered ? "ol" : "ul", attributes, ...items.map(itemElement));
}

/** @param {MarkdownToken} item */
function itemElement({ tokens, loose }) {
  const parts = tokens.flatMap((/** @type {MarkdownToken} */ token) => {
    // The text of an item of a tight list is no paragraph of its own.
    if (token.type === "text" && token.tokens) return inline(token.tokens);
    if (token.type === "text" || token.type === "checkbox") return inline([token]);
    return [blockElement(token)];
  });
  return h("li", { class: loose ? "loose" : null }, ...parts);
}

/** @param {MarkdownToken} token */
function tableElement({ header, rows }) {
  /** @type {(tag: "th" | "td") => (cell: any) => HTMLElement} */
  const cell = (tag) => ({ tokens, align }) =>
    h(tag, { "data-align": align, scope: tag === "th" ? "col" : null }, ...inline(tokens));
  return h(
    "div",
    { class: "scrolled", tabindex: 0, role: "region", "aria-label": "Table" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ...header.map(cell("th")))),
      h("tbody", {}, ...rows.map((/** @type {any[]} */ row) => h("tr", {}, ...row.map(cell("td"))))),
    ),
  );
}

/**
 * @param {MarkdownToken[]} tokens
 * @returns {Parts}
 */
function inline(tokens) {
  return tokens.flatMap(inlineParts);
}

/**
 * @param {MarkdownToken} token
 * @returns {Parts}
 */
function inlineParts(token) {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return [h(/** @type {"strong" | "em" | "del"} */ (token.type), {}, ...inline(token.tokens))];
    case "codespan":
      return [h("code", {}, token.text)];
    case "br":
      return [h("br")];
    case "checkbox":
      return [h("input", { type: "checkbox", checked: token.checked, disabled: true, "aria-label": token.checked ? "Done" : "To do" })];
    case "link":
      return linkParts(token, inline(token.tokens));
    case "image":
      return linkParts(token, [token.text || token.href]);
    case "formula":
      return [formulaElement(token.text, token.wide)];
    case "escape":
      return [token.text];
    case "text":
      return token.tokens ? inline(token.tokens) : [decoded(token.text)];
    default:
      return [token.raw];
  }
}

/**
 * Return a link, or its source if it leads where a link must not lead.
 * @param {MarkdownToken} token
 * @param {Parts} parts
 * @returns {Parts}
 */
function linkParts({ href, raw }, parts) {
  const url = URL.canParse(href) ? new URL(href) : null;
  if (url === null || !SCHEMES.has(url.protocol)) return [raw];
  const attributes = { href: url.href, title: url.href, rel: "noopener noreferrer nofollow", target: "_blank" };
  return [h("a", attributes, ...parts)];
}

/**
 * Replace the usual entities of HTML by their characters.
 * @param {string} text
 */
function decoded(text) {
  return text.replace(ENTITY, (raw, decimal, hexadecimal, name) => {
    if (name !== undefined) return NAMED.get(name) ?? raw;
    const code = decimal ? Number(decimal) : Number.parseInt(hexadecimal, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : raw;
  });
}
