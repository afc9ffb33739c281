/**
 * The choice of a prompt format and of a model. Used by every page that sends messages; knows only
 * the element.
 */

import { h } from "./dom.js";

/** @typedef {import("./api.js").Plugins} Plugins */

/**
 * Offer the installed prompt formats.
 * @param {HTMLSelectElement} select
 * @param {Plugins} plugins
 */
export function offerFormats(select, plugins) {
  const own = plugins.formats.find((format) => format.chosen)?.name;
  select.replaceChildren(
    h("option", { value: "" }, own ? `The model's own (${own})` : "The model's own"),
    ...plugins.formats.map(({ name }) => h("option", { value: name }, name)),
  );
}

/**
 * Offer the server's model, as "", and its adapters.
 * @param {HTMLSelectElement} select
 * @param {string[]} models the server's own first
 */
export function offerModels(select, models) {
  select.replaceChildren(
    ...models.map((name, place) =>
      place === 0 ? h("option", { value: "" }, name) : h("option", { value: name }, `${name} (adapter)`),
    ),
  );
}

/**
 * Select a name, even one that this server does not have.
 * @param {HTMLSelectElement} select
 * @param {string} name
 */
export function choose(select, name) {
  select.value = name;
  if (select.value === name) return;
  select.append(h("option", { value: name }, `${name} (not on this server)`));
  select.value = name;
}
