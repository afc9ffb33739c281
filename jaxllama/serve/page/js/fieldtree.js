/**
 * The fields of a JSON value, one row each: filled while the value is being written, and edited in
 * place. Used by fields.js; knows schemas and values, not the server.
 */

import { arrange, h, iconButton } from "./dom.js";
import { plainValue } from "./json.js";
import { barList } from "./plots.js";
import { closedValues, inner, resolve } from "./schema.js";

/** @typedef {import("./json.js").JsonNode} JsonNode */
/** @typedef {import("./schema.js").Path} Path */
/** @typedef {import("./schema.js").Schema} Schema */
/** @typedef {{path: Path, schema: Schema, node: JsonNode | null}} FieldPart node: null while there is no value */
/** @typedef {{value: any, share: number, text: string}} Alternative */

/**
 * @typedef {object} FieldActions
 * @property {(path: Path, value: any) => void} onContinue the reader wants all after a field anew
 * @property {(path: Path) => void} onAlternatives
 */

const DEEPEST = 12;

/** Shows the fields of one value. */
export class FieldTree {
  /**
   * @param {HTMLElement} place
   * @param {FieldActions} actions
   */
  constructor(place, actions) {
    this.place = place;
    this.actions = actions;
    /** @type {Map<string, FieldRow>} */
    this.rows = new Map();
  }

  /**
   * @param {Schema} root
   * @param {JsonNode | null} node the value so far
   * @param {boolean} isWriting
   */
  show(root, node, isWriting) {
    /** @type {FieldPart[]} */
    const parts = [];
    collect(root, { path: [], schema: root, node }, parts);
    const rows = parts.map((part) => {
      const values = closedValues(root, part.schema);
      const key = JSON.stringify([part.path, isGroup(root, part), values !== null]);
      const row = this.rows.get(key) ?? new FieldRow(part.path, isGroup(root, part), values, this.actions);
      this.rows.set(key, row);
      row.show(part, isWriting);
      return row;
    });
    arrange(this.place, rows.map(({ element }) => element));
  }

  clear() {
    this.rows.clear();
    this.place.replaceChildren();
  }

  /**
   * Show alternatives below a field, or words in their place.
   * @param {Path} path
   * @param {Alternative[] | string} found
   * @param {string} [about]
   */
  showAlternatives(path, found, about = "") {
    const wanted = JSON.stringify(path);
    const row = [...this.rows.values()].find((each) => JSON.stringify(each.path) === wanted && !each.isGroup);
    row?.showAlternatives(found, about);
  }
}

/**
 * List a value's parts: those that are there, and those that its schema says will come.
 * @param {Schema} root
 * @param {FieldPart} part
 * @param {FieldPart[]} parts
 */
function collect(root, part, parts) {
  if (part.path.length > 0) parts.push(part);
  if (part.path.length >= DEEPEST) return;
  const { path, schema, node } = part;
  const known = resolve(root, schema);
  if (node?.kind === "array") {
    for (const [place, item] of node.items.entries()) {
      collect(root, { path: [...path, place], schema: inner(root, schema, place), node: item }, parts);
    }
    return;
  }
  const values = new Map(node?.entries.map(({ key, value }) => [key, value]));
  const names = new Set([...Object.keys(known.properties ?? {}), ...values.keys()]);
  for (const name of names) {
    const value = values.get(name) ?? null;
    if (value === null && node?.isWhole) continue; // the model left it out
    collect(root, { path: [...path, name], schema: inner(root, schema, name), node: value }, parts);
  }
}

/**
 * @param {Schema} root
 * @param {FieldPart} part
 */
function isGroup(root, { schema, node }) {
  if (node) return node.kind === "object" || node.kind === "array";
  const { type, properties } = resolve(root, schema);
  return type === "object" || type === "array" || properties !== undefined;
}

/** One field. */
class FieldRow {
  /**
   * @param {Path} path
   * @param {boolean} isGroup
   * @param {any[] | null} values all that are possible, if they are few
   * @param {FieldActions} actions
   */
  constructor(path, isGroup, values, actions) {
    this.path = path;
    this.isGroup = isGroup;
    this.values = values;
    this.actions = actions;
    this.isText = true;
    const last = path.at(-1);
    const name = typeof last === "number" ? `${last + 1}.` : String(last);
    this.extra = h("div", { class: "alternatives", hidden: true, role: "region", "aria-label": `Alternatives of ${path.join(" ")}` });
    this.element = h("div", {});
    this.element.style.setProperty("--depth", String(path.length - 1));
    if (isGroup) {
      this.element.append(h("span", { class: "name" }, name));
      return;
    }
    const id = `field-${path.map((each) => encodeURIComponent(each)).join("-")}`;
    this.field = values
      ? h("select", { id }, ...values.map((value, place) => h("option", { value: place }, textOf(value))))
      : h("textarea", { id, rows: 1, spellcheck: "false" });
    this.go = iconButton("continue", `Go on from ${path.join(" ")}`, () => this.continue());
    this.others = iconButton("bench", `Alternatives of ${path.join(" ")}`, () => actions.onAlternatives(path));
    this.field.addEventListener("input", () => this.mark(true));
    this.field.addEventListener("keydown", (/** @type {any} */ event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      event.stopPropagation();
      this.continue();
    });
    this.element.append(h("label", { for: id }, name), this.field, h("div", { class: "actions" }, this.go, this.others), this.extra);
    this.mark(false);
  }

  /** @param {boolean} isEdited */
  mark(isEdited) {
    this.element.toggleAttribute("data-edited", isEdited);
    if (this.go) this.go.hidden = !isEdited;
  }

  /**
   * @param {FieldPart} part
   * @param {boolean} isWriting
   */
  show({ node }, isWriting) {
    const state = node === null ? "waiting" : node.isWhole || !isWriting ? "done" : "writing";
    this.element.dataset.state = state;
    if (!this.field || !this.others) return;
    this.others.hidden = isWriting || node === null;
    this.field.disabled = this.values !== null && isWriting;
    if (this.field instanceof HTMLTextAreaElement) this.field.readOnly = isWriting;
    if (isWriting) this.extra.hidden = true;
    if (node === null) {
      if (this.field instanceof HTMLTextAreaElement) this.field.value = "";
      else this.field.selectedIndex = -1;
      this.mark(false);
      return;
    }
    if (this.element.hasAttribute("data-edited") && !isWriting) return;
    this.mark(false);
    this.isText = node.kind === "string";
    const text = node.text;
    if (this.field instanceof HTMLTextAreaElement) {
      if (this.field.value !== text) this.field.value = text;
    } else if (this.values && node.isWhole) {
      const value = JSON.stringify(plainValue(node));
      this.field.selectedIndex = this.values.findIndex((each) => JSON.stringify(each) === value);
    }
  }

  /** Report the value in the field, if it is one. */
  continue() {
    const { field } = this;
    if (!field || field.disabled || (field instanceof HTMLTextAreaElement && field.readOnly)) return;
    let value;
    if (this.values) {
      value = this.values[/** @type {HTMLSelectElement} */ (field).selectedIndex];
    } else if (this.isText) {
      value = field.value;
    } else {
      try {
        value = JSON.parse(field.value);
      } catch {
        field.setAttribute("aria-invalid", "true");
        this.showAlternatives(`“${field.value}” is no JSON value: texts need quotes here.`, "");
        return;
      }
    }
    field.removeAttribute("aria-invalid");
    this.actions.onContinue(this.path, value);
  }

  /**
   * @param {Alternative[] | string} found
   * @param {string} about
   */
  showAlternatives(found, about) {
    this.extra.hidden = false;
    if (typeof found === "string") {
      this.extra.replaceChildren(h("p", { class: "hint", role: "status" }, found));
      return;
    }
    const list = barList(found.map(({ value, share, text }) => ({ name: textOf(value), share, text })));
    for (const [place, item] of [...list.children].entries()) {
      const { value } = found[place];
      const name = /** @type {HTMLElement} */ (item.firstChild);
      const take = () => this.actions.onContinue(this.path, value);
      name.replaceChildren(h("button", { type: "button", onclick: take }, textOf(value)));
    }
    this.extra.replaceChildren(h("p", { class: "hint" }, about), list);
    list.querySelector("button")?.focus();
  }
}

/** @param {any} value */
function textOf(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}
