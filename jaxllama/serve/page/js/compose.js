/**
 * The form of a new batch: template, values, number of answers, and a preview of the prompts. Used
 * by batch.js; knows no server.
 */

import { byId, h, onSubmit } from "./dom.js";
import { FileDrop } from "./drop.js";
import { MOST, namesFor, partsOf, problemOf, requestsOf } from "./plan.js";
import { keepChoices, readChoices } from "./preferences.js";
import { kindOf, readRows, RowError } from "./rows.js";

/** @typedef {import("./plan.js").Plan} Plan */
/** @typedef {import("./rows.js").FileRow} FileRow */

const LONGEST_KEPT = 200_000; // characters of values that the browser keeps for the next visit
const LONGEST_SHOWN = 100_000; // characters of a file that are shown in the field
const MILLISECONDS_TYPING = 250;

/** Controls the form. */
export class Compose {
  /** @param {{start: (plan: Pick<Plan, "mode" | "system" | "template" | "rows" | "count">) => void, onMode: (mode: Plan["mode"]) => void}} actions */
  constructor({ start, onMode }) {
    this.onMode = onMode;
    this.form = byId("compose");
    this.system = byId("system");
    this.template = byId("template");
    this.values = byId("values");
    this.count = byId("count");
    /** @type {FileRow[]} */
    this.rows = [];
    this.wrong = "";
    this.shown = 0; // place of the prompt in the preview
    /** @type {{name: string, text: string} | null} a file too large for the field */
    this.file = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    const drop = new FileDrop({
      label: "Choose a file",
      accept: ".csv,.jsonl,.json",
      area: byId("main"),
      onText: (name, text) => this.take(name, text),
      onProblem: (words) => this.showWrong(words),
    });
    byId("drop").append(drop.element);
    for (const field of [this.system, this.template, this.count]) {
      field.addEventListener("input", () => this.update());
    }
    byId("mode").addEventListener("change", () => this.update());
    this.values.addEventListener("input", () => {
      this.file = null;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.read("", this.values.value), MILLISECONDS_TYPING);
    });
    byId("before").addEventListener("click", () => this.preview(this.shown - 1));
    byId("after").addEventListener("click", () => this.preview(this.shown + 1));
    onSubmit(this.form, () => this.submit(start));
    this.restore();
  }

  /** @returns {"chat" | "completion"} */
  get mode() {
    return this.form.elements.mode.value;
  }

  get plan() {
    return {
      mode: this.mode,
      system: this.mode === "chat" ? this.system.value : "",
      template: this.template.value,
      rows: this.rows,
      count: Number(this.count.value),
    };
  }

  /** @param {(plan: any) => void} start */
  submit(start) {
    clearTimeout(this.timer);
    if (this.file === null) this.read("", this.values.value);
    if (byId("start").disabled) {
      (this.wrong ? this.values : this.template).focus();
      return;
    }
    this.keep();
    start(this.plan);
  }

  /**
   * Take a file with values.
   * @param {string} name
   * @param {string} text
   */
  take(name, text) {
    const isLarge = text.length > LONGEST_SHOWN;
    this.file = isLarge ? { name, text } : null;
    this.values.value = isLarge ? "" : text;
    this.read(name, text);
  }

  /**
   * @param {string} name of the file, "" for pasted text
   * @param {string} text
   */
  read(name, text) {
    this.rows = [];
    this.showWrong("");
    try {
      if (text.trim() !== "") this.rows = readRows(kindOf(name, text), text);
    } catch (error) {
      if (!(error instanceof RowError)) throw error;
      this.showWrong(`${name && `“${name}” `}${error.message}.`);
    }
    const names = namesFor(this.rows);
    const where = this.file ? ` of “${this.file.name}”, which is too large to be shown here` : "";
    byId("values-help").textContent =
      this.rows.length > 0
        ? `${counted(this.rows.length, "row")} with ${names.join(", ")}${where}.`
        : "CSV with a line of names, or one JSON object a line. Without values, the prompt is sent as it is.";
    byId("names").replaceChildren(
      ...names.map((each) =>
        h("button", { type: "button", class: "chip", onclick: () => this.insert(`{${each}}`) }, `{${each}}`),
      ),
    );
    this.update();
  }

  /** @param {string} words */
  showWrong(words) {
    this.wrong = words;
    byId("values-wrong").textContent = words;
    this.values.setAttribute("aria-invalid", String(words !== ""));
  }

  /** @param {string} text to put where the cursor is in the template */
  insert(text) {
    const { template } = this;
    template.setRangeText(text, template.selectionStart, template.selectionEnd, "end");
    template.focus();
    this.update();
  }

  /** Show what the form says now. */
  update() {
    const { plan, mode } = this;
    byId("system-row").hidden = mode !== "chat";
    byId("template-label").textContent = mode === "chat" ? "Message of the user" : "Prompt";
    byId("count-label").textContent = this.rows.length > 0 ? "Answers to each row" : "Answers to the prompt";
    const isCount = Number.isInteger(plan.count) && plan.count >= 1 && plan.count <= MOST;
    byId("count-wrong").textContent = isCount ? "" : `Expected a whole number from 1 to ${MOST}.`;
    this.count.setAttribute("aria-invalid", String(!isCount));
    const problem = this.wrong ? "" : isCount ? problemOf(/** @type {Plan} */ (plan)) : "";
    const isReady = isCount && problem === "" && this.wrong === "";
    byId("start").disabled = !isReady;
    byId("start-label").textContent = isReady
      ? `Start ${counted(requestsOf(/** @type {Plan} */ (plan)), "answer")}`
      : "Start";
    // An empty form is no mistake yet.
    byId("start-problem").textContent = plan.template === "" ? "" : problem;
    byId("start-hint").hidden = !isReady;
    this.preview(this.shown);
    this.onMode(mode);
  }

  /** @param {number} place of the prompt */
  preview(place) {
    const { plan } = this;
    const last = Math.max(this.rows.length, 1) - 1;
    this.shown = Math.max(0, Math.min(place, last));
    byId("preview-title").textContent = last > 0 ? `Prompt ${this.shown + 1} of ${last + 1}` : "Prompt";
    for (const id of ["before", "after"]) byId(id).hidden = last === 0;
    let parts;
    try {
      parts = partsOf(/** @type {Plan} */ (plan), this.shown);
    } catch (error) {
      parts = [{ role: "", content: `${/** @type {Error} */ (error).message}` }];
    }
    byId("preview").replaceChildren(...partElements(parts));
  }

  /** Keep the form for the next visit. */
  keep() {
    const { mode, system, template, count } = { ...this.plan, system: this.system.value };
    const values = this.values.value;
    keepChoices({ batch: { mode, system, template, count, values: values.length > LONGEST_KEPT ? "" : values } });
  }

  restore() {
    const kept = /** @type {any} */ (readChoices().batch ?? {});
    const text = (/** @type {unknown} */ value) => (typeof value === "string" ? value : "");
    if (kept.mode === "completion") this.form.elements.mode.value = "completion";
    this.system.value = text(kept.system);
    this.template.value = text(kept.template);
    this.values.value = text(kept.values);
    if (Number.isInteger(kept.count)) this.count.value = String(kept.count);
    this.read("", this.values.value);
  }
}

/**
 * Make the elements of a prompt: each message below the name of its role.
 * @param {import("./plan.js").Part[]} parts
 */
export function partElements(parts) {
  return parts.flatMap(({ role, content }) => [
    ...(role ? [h("b", {}, role.charAt(0).toUpperCase() + role.slice(1))] : []),
    content,
  ]);
}

/**
 * @param {number} number
 * @param {string} noun
 */
export function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
