/**
 * Elements, made in one call. Used by every view. Text goes in as text nodes and nothing here
 * parses HTML, so what a model says can never become part of the page.
 */

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | null | undefined | false} Child */

/**
 * An element. Keys beginning with "on" are listeners, booleans switch attributes, the rest are
 * attributes.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  for (const child of children) if (child) element.append(child);
  return element;
}

/**
 * One of the icons drawn in index.html; always decoration, the button says its name.
 * @param {string} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button that shows an icon only.
 * @param {string} name of the icon
 * @param {string} label
 * @param {(event: Event) => void} action
 */
export function iconButton(name, label, action) {
  return h(
    "button",
    { type: "button", class: "quiet", "aria-label": label, title: label, onclick: action },
    icon(name),
  );
}

/**
 * An element of index.html, which must be there.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element #${id}`);
  return element;
}

/**
 * Make `elements` the children, in order. Those that are in place stay untouched, so that what has
 * the focus keeps it.
 * @param {Element} parent
 * @param {Element[]} elements
 */
export function arrange(parent, elements) {
  for (const each of [...parent.children]) if (!elements.includes(each)) each.remove();
  elements.forEach((each, place) => {
    if (parent.children[place] !== each) parent.insertBefore(each, parent.children[place] ?? null);
  });
}

/**
 * Offer text as a file to keep.
 * @param {string} name
 * @param {string} text
 */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
