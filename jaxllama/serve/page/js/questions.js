/**
 * The questions of a classification: their cards in the form, and what they add to a row. The same
 * rules as `jaxllama classify`. Used by classify.js; knows no server.
 */

import { h, iconButton } from "./dom.js";
import { textOf } from "./rows.js";

/** @typedef {import("./rows.js").FileRow} FileRow */
/** @typedef {{text: string, choices: string[], gold: string, suffix: string}} Question gold: a column, or "" */
/** @typedef {Map<string, number>} Chances probability of each choice */

export const MOST_CHOICES = 256;
let cards = 0;

/** One question in the form. */
export class QuestionCard {
  /**
   * @param {{onChange: () => void, onRemove: (card: QuestionCard) => void}} actions
   * @param {{text?: string, choices?: string}} [like]
   */
  constructor({ onChange, onRemove }, { text = "", choices = "" } = {}) {
    cards += 1;
    const id = `question-${cards}`;
    this.title = h("h3", { id: `${id}-title` }, "Question");
    this.remove = iconButton("trash", "Remove this question", () => onRemove(this));
    this.text = h("input", {
      id,
      type: "text",
      placeholder: "Did the guest like it?",
      "aria-labelledby": this.title.id,
      oninput: onChange,
    });
    this.choices = h("input", {
      id: `${id}-choices`,
      type: "text",
      placeholder: "yes, no",
      "aria-describedby": `${id}-wrong`,
      oninput: onChange,
    });
    this.gold = h("select", { id: `${id}-gold`, onchange: onChange });
    this.goldRow = h(
      "div",
      { class: "field", hidden: true },
      h("label", { for: this.gold.id }, "Column with the right answer"),
      this.gold,
    );
    this.wrong = h("p", { class: "wrong", id: `${id}-wrong` });
    this.text.value = text;
    this.choices.value = choices;
    this.element = h(
      "div",
      { class: "card" },
      h("div", { class: "heading" }, this.title, this.remove),
      this.text,
      h(
        "div",
        { class: "field" },
        h("label", { for: `${id}-choices` }, "Choices, or a JSON list of them"),
        this.choices,
        this.wrong,
      ),
      this.goldRow,
    );
  }

  /**
   * Offer the columns of a file for the right answers.
   * @param {string[]} names
   */
  offer(names) {
    const chosen = this.gold.value;
    this.gold.replaceChildren(h("option", { value: "" }, "None"), ...names.map((name) => h("option", { value: name }, name)));
    this.gold.value = names.includes(chosen) ? chosen : "";
    this.goldRow.hidden = names.length === 0;
  }

  /**
   * @param {number} number from 0
   * @param {number} count of all questions
   * @returns {Question}
   */
  read(number, count) {
    const { choices, wrong } = readChoices(this.choices.value);
    this.wrong.textContent = this.choices.value.trim() === "" ? "" : wrong;
    this.choices.setAttribute("aria-invalid", String(this.wrong.textContent !== ""));
    this.title.textContent = count > 1 ? `Question ${number + 1}` : "Question";
    this.remove.hidden = count === 1;
    const suffix = count > 1 ? `_${number + 1}` : "";
    return { text: this.text.value, choices: wrong ? [] : choices, gold: this.gold.value, suffix };
  }
}

/**
 * Read choices: texts with commas between them, or a JSON list of texts.
 * @param {string} text
 */
export function readChoices(text) {
  /** @type {unknown} */
  let found = text.split(",").map((each) => each.trim());
  if (text.trimStart().startsWith("[")) {
    try {
      found = JSON.parse(text);
    } catch {
      return { choices: [], wrong: "This is no JSON list." };
    }
    if (!Array.isArray(found) || !found.every((each) => typeof each === "string")) {
      return { choices: [], wrong: "The list holds more than texts." };
    }
  }
  const choices = /** @type {string[]} */ (found);
  const twice = choices.find((each, place) => choices.indexOf(each) < place);
  if (twice !== undefined) return { choices, wrong: `“${twice}” is there twice.` };
  if (choices.length === 0 || choices.includes("")) return { choices, wrong: "A choice is empty." };
  if (choices.length > MOST_CHOICES) return { choices, wrong: `At most ${MOST_CHOICES} choices are possible.` };
  return { choices, wrong: "" };
}

/**
 * Return the likeliest choice; of equal ones the first.
 * @param {Chances} chances
 */
export function best(chances) {
  let [label, most] = ["", -1];
  for (const [choice, chance] of chances) if (chance > most) [label, most] = [choice, chance];
  return { label, probability: most };
}

/**
 * Return the columns that a question adds to a row, with their values.
 * @param {Question} question
 * @param {Chances} chances
 * @returns {[string, string | number][]}
 */
export function columnsOf({ suffix, choices }, chances) {
  const { label, probability } = best(chances);
  return [
    [`label${suffix}`, label],
    [`probability${suffix}`, probability],
    ...choices.map((each) => /** @type {[string, number]} */ ([`probability${suffix}:${each}`, chances.get(each) ?? 0])),
  ];
}

/**
 * Return the right answer of a row; "" if it has none.
 * @param {FileRow} row
 * @param {Question} question
 */
export function goldOf({ values }, { gold }) {
  const value = values.get(gold);
  if (value === undefined || (typeof value !== "string" && value.text === "null" && value.kind === "literal")) return "";
  return textOf(value).trim();
}

/**
 * Return why a row cannot be classified, or "".
 * @param {FileRow} row
 * @param {string} column
 * @param {Question[]} questions
 */
export function problemOfRow(row, column, questions) {
  const value = row.values.get(column);
  const isText = typeof value === "string" || value?.kind === "string";
  if (!isText) return `line ${row.line}: has no text in “${column}”`;
  if (textOf(/** @type {any} */ (value)) === "") return `line ${row.line}: the text is empty`;
  const none = new Map();
  const taken = questions.flatMap((each) => columnsOf(each, none)).find(([name]) => row.values.has(name));
  if (taken) return `line ${row.line}: has a column “${taken[0]}”, which the result would replace; rename it`;
  for (const question of questions) {
    if (question.gold === "") continue;
    const right = goldOf(row, question);
    if (right && !question.choices.includes(right)) {
      return `line ${row.line}: ${question.gold} is “${right}”; expected one of ${question.choices.join(", ")}`;
    }
  }
  return "";
}
