/**
 * The choice of a prompt format. Used by every page that sends messages; knows only the element.
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
 * Select a prompt format, even one that is not installed here.
 * @param {HTMLSelectElement} select
 * @param {string} format
 */
export function chooseFormat(select, format) {
  select.value = format;
  if (select.value === format) return;
  select.append(h("option", { value: format }, `${format} (not installed)`));
  select.value = format;
}
