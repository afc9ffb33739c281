/**
 * Texts with placeholders: {name} stands for a value of a row, {{name}} for {name} itself, any other
 * brace for itself. The same rules as at the command line (cli/placeholders.py). Knows no page.
 */

import { textOf } from "./rows.js";

/** @typedef {import("./rows.js").FileRow} FileRow */

const NAME = "[\\p{L}\\p{Nl}\\p{No}_][\\p{L}\\p{N}_ -]*";
const PLACEHOLDER = new RegExp(`\\{(\\{${NAME}\\})\\}|\\{(${NAME})\\}`, "gu");

/** A template names a value that a row does not have. */
export class TemplateError extends Error {}

/**
 * Return the names in a template, each once.
 * @param {string} template
 */
export function namesIn(template) {
  const names = new Set();
  for (const [, , name] of template.matchAll(PLACEHOLDER)) if (name !== undefined) names.add(name);
  return /** @type {string[]} */ ([...names]);
}

/**
 * Return the template with the values of a row; throws TemplateError for a name without a value.
 * @param {string} template
 * @param {FileRow["values"]} values
 */
export function fill(template, values) {
  return template.replace(PLACEHOLDER, (_, literal, name) => {
    if (name === undefined) return literal;
    const value = values.get(name);
    if (value === undefined) {
      const known = [...values.keys()].map((each) => `{${each}}`).join(", ") || "none";
      throw new TemplateError(`the template has {${name}}; expected one of ${known}`);
    }
    return textOf(value);
  });
}
