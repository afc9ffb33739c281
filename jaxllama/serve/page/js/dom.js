/**
 * Functions that make elements. Used by every view. Text becomes text nodes, and nothing here
 * parses HTML, so a model's text can never become markup of the page.
 */

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | null | undefined | false} Child */

/**
 * Make an element. Keys that start with "on" are listeners, booleans switch attributes, other keys
 * are attributes.
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
 * Make an icon of index.html; it is decoration, since its button has a label.
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
 * Make a button that shows only an icon.
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
 * Return an element of index.html, which must exist.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element #${id}`);
  return element;
}

/**
 * Replace the children by `elements`, in order. Elements already in place stay untouched, so that
 * the focus is kept.
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
 * Call `act` when the reader submits a form, or presses Ctrl and Enter in one of its fields.
 * @param {HTMLFormElement} form
 * @param {() => void} act
 */
export function onSubmit(form, act) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    act();
  });
}

/**
 * Let the reader change a text where it stands: Enter or a click elsewhere keeps it, Escape does not.
 * @param {HTMLElement} place
 * @param {object} options
 * @param {string} options.label
 * @param {string} options.value
 * @param {number} options.longest characters
 * @param {HTMLElement} options.back gets the focus after a key
 * @param {(text: string | null) => void} options.onDone gets the new text, null if it is the old one
 */
export function editInPlace(place, { label, value, longest, back, onDone }) {
  const field = h("input", { type: "text", "aria-label": label, maxlength: longest });
  field.value = value;
  let isOver = false;
  const leave = (/** @type {boolean} */ keep) => {
    if (isOver) return;
    isOver = true;
    field.remove();
    const text = field.value.trim();
    onDone(keep && text !== value ? text : null);
  };
  field.addEventListener("blur", () => leave(true));
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.stopPropagation();
    leave(event.key === "Enter");
    back.focus();
  });
  place.replaceChildren(field);
  field.select();
}

/**
 * Offer text as a file to download.
 * @param {string} name
 * @param {string} text
 * @param {string} [type]
 */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
