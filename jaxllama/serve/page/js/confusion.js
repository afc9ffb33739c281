/**
 * Right and wrong choices of a question: accuracy, and how often each choice was taken for each right
 * answer. Used by classify.js; knows no page.
 */

import { h } from "./dom.js";

/** @typedef {{gold: string, label: string, probability: number}} Judged gold: "" if it is not known */

/**
 * Count the choices of a question, of the texts whose choice is likely enough.
 * @param {Judged[]} judged
 * @param {number} threshold
 */
export function tally(judged, threshold) {
  /** @type {Map<string, Map<string, number>>} */
  const counts = new Map();
  let [sure, known, right] = [0, 0, 0];
  for (const { gold, label, probability } of judged) {
    if (probability < threshold) continue;
    sure += 1;
    if (gold === "") continue;
    known += 1;
    right += Number(gold === label);
    const row = counts.get(gold) ?? new Map();
    row.set(label, (row.get(label) ?? 0) + 1);
    counts.set(gold, row);
  }
  return { counts, sure, known, right, total: judged.length };
}

/**
 * Make the table: a row for each right answer, a column for each choice.
 * @param {string[]} choices
 * @param {Map<string, Map<string, number>>} counts
 */
export function confusionTable(choices, counts) {
  const cell = (/** @type {string} */ gold, /** @type {string} */ label) => {
    const row = counts.get(gold);
    const count = row?.get(label) ?? 0;
    const all = [...(row?.values() ?? [])].reduce((sum, each) => sum + each, 0);
    const element = h("td", { class: gold === label ? "right" : null }, String(count));
    element.style.setProperty("--share", String(all > 0 ? count / all : 0));
    return element;
  };
  return h(
    "div",
    { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Confusion table" },
    h(
      "table",
      { class: "confusion" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Right ↓ chosen →"), ...choices.map((each) => h("th", { scope: "col", title: each }, each)))),
      h(
        "tbody",
        {},
        ...choices.map((gold) => h("tr", {}, h("th", { scope: "row", title: gold }, gold), ...choices.map((label) => cell(gold, label)))),
      ),
    ),
  );
}
