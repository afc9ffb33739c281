/**
 * The choice of a prompt format and of a model. Used by every page that sends messages; knows only
 * the element.
 */

import { h } from "./dom.js";

/** @typedef {import("./api.js").ModelName} ModelName */
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
 * Offer the server's models, the default one as "", and their adapters.
 * @param {HTMLSelectElement} select
 * @param {ModelName[]} models the default one first
 */
export function offerModels(select, models) {
  select.replaceChildren(
    ...models.map(({ name, isAdapter }, place) =>
      h("option", { value: place === 0 ? "" : name }, isAdapter ? `${name} (adapter)` : name),
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
