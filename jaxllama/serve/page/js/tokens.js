/**
 * An answer as tokens, each tinted by how unlikely it was under the model; hover or focus a token
 * to see its probability and the alternatives. Used by message.js; knows nothing of conversations.
 */

import { byId, h } from "./dom.js";

/** @typedef {import("./conversation.js").Token} Token */

const VISIBLE = new Map([["\n", "↵"], ["\t", "⇥"], ["\r", "␍"], [" ", "␣"], ["", "∅"]]);
const GAP = 8; // pixels between a token and its card

/** Shows a growing list of tokens; one stop of the Tab key, arrow keys move between tokens. */
export class TokenView {
  constructor() {
    this.element = h("div", {
      class: "tokens",
      role: "listbox",
      "aria-label": "Tokens of this answer",
      "aria-orientation": "horizontal",
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.move(event),
      onfocusin: (/** @type {Event} */ event) => this.choose(event.target),
      onfocusout: hideCard,
      onpointerover: (/** @type {Event} */ event) => this.reveal(event.target),
      onpointerleave: hideCard,
    });
    /** @type {Token[]} */
    this.tokens = [];
  }

  /** @param {Token[]} tokens the ones shown before, and new ones */
  show(tokens) {
    const shown = this.element.children.length;
    if (tokens !== this.tokens || shown > tokens.length) this.element.replaceChildren();
    this.tokens = tokens;
    for (let place = this.element.children.length; place < tokens.length; place += 1) {
      this.element.append(tokenElement(tokens[place], place === 0));
    }
  }

  /** @param {EventTarget | null} target */
  reveal(target) {
    const place = [...this.element.children].indexOf(/** @type {Element} */ (target));
    if (place < 0 || this.tokens[place].logprob === undefined) hideCard();
    else showCard(this.tokens[place], /** @type {HTMLElement} */ (target));
  }

  /** @param {EventTarget | null} target */
  choose(target) {
    const chosen = /** @type {HTMLElement} */ (target);
    for (const each of this.element.querySelectorAll("[aria-selected=true]")) {
      each.setAttribute("aria-selected", "false");
      each.setAttribute("tabindex", "-1");
    }
    chosen.setAttribute("aria-selected", "true");
    chosen.tabIndex = 0;
    this.reveal(chosen);
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const all = /** @type {HTMLElement[]} */ ([...this.element.children]);
    const place = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const last = all.length - 1;
    /** @type {Record<string, number>} */
    const targets = {
      ArrowRight: Math.min(place + 1, last),
      ArrowLeft: Math.max(place - 1, 0),
      ArrowDown: Math.min(place + 10, last),
      ArrowUp: Math.max(place - 10, 0),
      Home: 0,
      End: last,
    };
    if (event.key === "Escape" && !byId("token-card").hidden) {
      hideCard();
      event.stopPropagation();
    }
    if (!(event.key in targets)) return;
    event.preventDefault();
    all[targets[event.key]].focus();
  }
}

/**
 * @param {Token} token
 * @param {boolean} first
 */
function tokenElement(token, first) {
  const known = token.logprob !== undefined;
  const element = h(
    "span",
    {
      class: known ? "token" : "token untold",
      role: "option",
      "aria-selected": "false",
      "aria-label": spelled(token.text) + (known ? `, ${percent(token.logprob)}` : ""),
      tabindex: first ? 0 : -1,
    },
    token.text === "" ? "∅" : token.text.replace(/\n$/, "↵\n"),
  );
  // Squared, so that a nearly certain token is nearly untinted.
  if (known) element.style.setProperty("--surprise", String((1 - Math.exp(token.logprob ?? 0)) ** 2));
  return element;
}

/**
 * @param {Token} token
 * @param {HTMLElement} beside
 */
function showCard(token, beside) {
  const card = byId("token-card");
  card.replaceChildren(
    h("p", { class: "said" }, spelled(token.text)),
    h(
      "dl",
      {},
      h("dt", {}, "Model"),
      h("dd", {}, percent(token.logprob)),
      token.sampled !== undefined && h("dt", {}, "As sampled"),
      token.sampled !== undefined && h("dd", {}, percent(token.sampled)),
    ),
    alternatives(token),
  );
  card.hidden = false;
  const [box, size] = [beside.getClientRects()[0], card.getBoundingClientRect()];
  const left = Math.min(Math.max(box.left, GAP), innerWidth - size.width - GAP);
  const below = box.bottom + GAP + size.height < innerHeight;
  card.style.left = `${left}px`;
  card.style.top = `${below ? box.bottom + GAP : Math.max(box.top - GAP - size.height, GAP)}px`;
}

function hideCard() {
  byId("token-card").hidden = true;
}

/**
 * Make the table of alternatives: one row per token, under the model and as sampled.
 * @param {Token} token
 */
function alternatives({ text, top = [], topSampled }) {
  if (top.length === 0) return h("p", { class: "hint" }, "No alternatives were recorded.");
  const sampled = new Map(topSampled?.map((other) => [other.text, other.logprob]));
  const rows = top.map((other) => {
    const row = h(
      "tr",
      { class: other.text === text ? "chosen" : null },
      h("td", { class: "said" }, spelled(other.text)),
      h("td", {}, percent(other.logprob)),
      topSampled && h("td", {}, sampled.has(other.text) ? percent(sampled.get(other.text)) : "–"),
    );
    row.style.setProperty("--share", String(Math.exp(other.logprob)));
    return row;
  });
  const head = h(
    "tr",
    {},
    h("th", {}, "Alternatives"),
    h("th", {}, "model"),
    topSampled && h("th", {}, "sampled"),
  );
  return h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows));
}

/**
 * Return a token's text with visible spaces and line breaks.
 * @param {string} text
 */
function spelled(text) {
  if (VISIBLE.has(text)) return /** @type {string} */ (VISIBLE.get(text));
  return text.replace(/[\n\t\r]/g, (blank) => VISIBLE.get(blank) ?? blank).replace(/^ | $/g, "␣");
}

/** @param {number | undefined} logprob */
function percent(logprob) {
  const share = Math.exp(logprob ?? 0) * 100;
  if (share > 0 && share < 0.01) return "< 0.01 %";
  return `${share.toFixed(share < 1 ? 2 : 1)} %`;
}
