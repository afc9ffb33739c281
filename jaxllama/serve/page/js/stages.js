/**
 * The distribution at one token, stage by stage: bars for the likeliest tokens, what each stage
 * removed and costs, and a table of the same numbers. Texts of tokens stay text. Knows explanations,
 * not how they are fetched.
 */

import { h } from "./dom.js";
import { labelOf } from "./controls.js";
import { short } from "./plots.js";

/** @typedef {{token: number, text: string, p: number}} LikelyToken */
/** @typedef {{name: string, kept: number, removed: number, rank: number | null, p: number, top: LikelyToken[]}} Stage */
/** @typedef {{token: number, text: string, recorded: number, chance: number, stages: Stage[]}} Position */
/** @typedef {{microseconds: number, where: string}} Cost */

const PIXELS_PER_TOKEN = 24;
const MOST_TOKENS = 24;
const DECADES = 5; // of the logarithmic scale

/** Shows one position. */
export class StageView {
  /** @param {(name: string) => Cost | null} costOf the measured cost of a sampler */
  constructor(costOf) {
    this.costOf = costOf;
    /** @type {Position | null} */
    this.position = null;
    /** @type {LikelyToken[]} the columns */
    this.tokens = [];
    this.scale = h(
      "select",
      { "aria-label": "Scale", onchange: () => this.draw() },
      h("option", { value: "linear" }, "linear scale"),
      h("option", { value: "log" }, "logarithmic scale"),
    );
    this.line = h("span");
    this.stages = h("div", { class: "stages", role: "img" });
    this.reading = h("p", { class: "reading", "aria-hidden": "true" });
    this.where = h("p", { class: "hint" });
    this.table = h("div", { class: "shares", tabindex: 0, role: "region", "aria-label": "Probabilities after each stage" });
    this.element = h(
      "div",
      { hidden: true },
      h("div", { class: "explained-line" }, this.line, this.scale),
      this.stages,
      this.reading,
      this.where,
      h("details", { class: "group" }, h("summary", {}, h("span", {}, "The same as numbers")), this.table),
    );
    this.stages.addEventListener("pointermove", (event) => this.point(/** @type {PointerEvent} */ (event)));
    this.stages.addEventListener("pointerleave", () => this.mark(-1));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** @param {Position | null} position */
  show(position) {
    this.position = position;
    this.element.hidden = position === null;
    this.draw();
  }

  draw() {
    const { position } = this;
    if (position === null) return;
    const room = Math.max(160, this.stages.clientWidth - (innerWidth < 832 ? 0 : 224));
    this.tokens = columnsOf(position.stages).slice(0, Math.min(MOST_TOKENS, Math.floor(room / PIXELS_PER_TOKEN)));
    const most = Math.max(...position.stages.flatMap(({ top }) => top.map(({ p }) => p)), 1e-9);
    this.line.replaceChildren(
      h("strong", {}, shown(position.text, position.token)),
      h("span", { class: "soft" }, ` drawn by the number ${position.chance.toFixed(4)}`),
    );
    this.stages.setAttribute("aria-label", sentence(position));
    this.stages.replaceChildren(
      ...position.stages.map((stage) => this.row(stage, most, position.token)),
      h("div", { class: "stage" }, h("div", { class: "stage-name" }), this.labels(position.token)),
    );
    const where = position.stages.map(({ name }) => this.costOf(name)?.where).find(Boolean);
    this.where.textContent = where ? `µs: ${where}, as the package of the sampler states.` : "";
    this.mark(-1);
    this.showTable(position);
  }

  /**
   * @param {Stage} stage
   * @param {number} most
   * @param {number} drawn
   */
  row(stage, most, drawn) {
    const shares = new Map(stage.top.map(({ token, p }) => [token, p]));
    const cost = this.costOf(stage.name);
    const bars = this.grid(
      "stage-bars",
      this.tokens.map(({ token }) => {
        const p = shares.get(token) ?? 0;
        const bar = h("i", { class: p > 0 ? (token === drawn ? "drawn" : null) : "out" });
        bar.style.setProperty("--share", String(this.share(p, most)));
        return bar;
      }),
    );
    return h(
      "div",
      { class: "stage" },
      h(
        "div",
        { class: "stage-name" },
        h("b", {}, labelOf(stage.name)),
        cost && h("span", { class: "cost", title: cost.where }, `${cost.microseconds < 1 ? "<1" : short(cost.microseconds)} µs`),
        h("span", {}, `${short(stage.kept)} tokens${stage.removed > 5e-5 ? `, removed ${percent(stage.removed)}` : ""}`),
      ),
      bars,
    );
  }

  /** @param {number} drawn */
  labels(drawn) {
    return this.grid(
      "stage-bars stage-labels",
      this.tokens.map(({ token, text }) => {
        const words = shown(text, token);
        const names = [token === drawn && "drawn", words.length < 3 && "short"].filter(Boolean).join(" ");
        return h("span", { class: names || null }, words);
      }),
    );
  }

  /**
   * @param {string} name
   * @param {Node[]} cells
   */
  grid(name, cells) {
    const grid = h("div", { class: name }, ...cells);
    grid.style.setProperty("--tokens", String(this.tokens.length));
    return grid;
  }

  /**
   * @param {number} p
   * @param {number} most
   */
  share(p, most) {
    if (this.scale.value === "linear" || p <= 0) return p / most;
    return Math.max(0.02, 1 + Math.log10(p) / DECADES);
  }

  /** @param {PointerEvent} event */
  point({ clientX }) {
    const grid = this.stages.querySelector(".stage-bars");
    if (!grid) return;
    const { left, width } = grid.getBoundingClientRect();
    const place = Math.floor(((clientX - left) / width) * this.tokens.length);
    this.mark(place >= 0 && place < this.tokens.length ? place : -1);
  }

  /** @param {number} place of the column to read; -1: none */
  mark(place) {
    for (const grid of this.stages.querySelectorAll(".stage-bars")) {
      for (const [number, cell] of [...grid.children].entries()) cell.classList.toggle("at", number === place);
    }
    const column = this.tokens[place];
    const stages = this.position?.stages ?? [];
    this.reading.textContent = column
      ? `${shown(column.text, column.token)} (${column.token}): ` +
        stages.map(({ name, top }) => `${labelOf(name).toLowerCase()} ${percentOf(top, column.token)}`).join(", ")
      : "";
  }

  /** @param {Position} position */
  showTable({ stages, token: drawn }) {
    this.table.replaceChildren(
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), ...stages.map(({ name }) => h("th", { scope: "col" }, labelOf(name))))),
        h(
          "tbody",
          {},
          ...this.tokens.map(({ token, text }) =>
            h(
              "tr",
              { class: token === drawn ? "drawn" : null },
              h("th", { scope: "row" }, shown(text, token)),
              ...stages.map(({ top }) => h("td", {}, percentOf(top, token))),
            ),
          ),
        ),
      ),
    );
  }
}

/**
 * Return the tokens that any stage lists, the model's likeliest first.
 * @param {Stage[]} stages
 */
function columnsOf(stages) {
  /** @type {Map<number, LikelyToken>} */
  const found = new Map();
  const last = stages.at(-1)?.top.slice(0, 8) ?? [];
  const first = stages[0]?.top ?? [];
  const known = new Set(first.map(({ token }) => token));
  const late = last.filter(({ token }) => !known.has(token)); // which an adjuster has lifted
  for (const each of [...first.slice(0, MOST_TOKENS - late.length), ...late]) found.set(each.token, each);
  return [...found.values()];
}

/**
 * @param {LikelyToken[]} top
 * @param {number} token
 */
function percentOf(top, token) {
  const found = top.find((each) => each.token === token);
  return found ? percent(found.p) : "–";
}

/** @param {number} p */
export function percent(p) {
  const value = p * 100;
  return `${value >= 10 ? value.toFixed(1) : value >= 0.1 ? value.toFixed(2) : value.toPrecision(1)} %`;
}

/**
 * Show a token's text with its spaces and line breaks visible.
 * @param {string} text
 * @param {number} token
 */
export function shown(text, token) {
  if (text === "") return `[${token}]`;
  return text.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥").slice(0, 24);
}

/** @param {Position} position */
function sentence({ text, token, stages }) {
  const parts = stages.map(({ name, kept, p }) => `${labelOf(name)}: ${kept} tokens, the drawn one ${percent(p)}`);
  return `Distribution of the token ${shown(text, token)}. ${parts.join(". ")}.`;
}
