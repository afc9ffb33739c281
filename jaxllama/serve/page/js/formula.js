/**
 * A formula in TeX as MathML, parsed by Temml, a kept library that is loaded with the first formula.
 * Only elements and attributes of mathematics are made. Used by prose.js.
 */

import { h } from "./dom.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const LONGEST = 5000; // characters of a formula
const MOST_MACROS = 200;
const ELEMENTS = new Set(
  ("math maction menclose merror mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot " +
    "mrow ms mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover none").split(" "),
);
const ATTRIBUTES = new Set(
  ("accent accentunder columnspan depth dir display displaystyle fence form height largeop linethickness " +
    "lspace mathcolor mathsize mathvariant maxsize minsize movablelimits notation rowspan rspace scriptlevel " +
    "separator stretchy symmetric voffset width").split(" "),
);
const STYLES = new Set(["color", "fontWeight", "paddingLeft", "paddingRight", "textAlign"]);

/** @type {Promise<any> | null} */
let library = null;

/**
 * Make the element of a formula; its source stands there until the library is loaded, and stays
 * where the formula is wrong.
 * @param {string} source
 * @param {boolean} wide on a line of its own
 */
export function formulaElement(source, wide) {
  const element = h("span", { class: "tex" }, wide ? `$$${source}$$` : `$${source}$`);
  if (source.length <= LONGEST) show(element, source, wide);
  return element;
}

/**
 * @param {HTMLElement} element
 * @param {string} source
 * @param {boolean} wide
 */
async function show(element, source, wide) {
  library ??= import("../vendor/temml/temml.js").then((module) => module.default);
  try {
    const temml = await library;
    const tree = temml.__renderToMathMLTree(source, {
      displayMode: wide,
      throwOnError: true,
      trust: false,
      maxExpand: MOST_MACROS,
      maxSize: [20, 200],
    });
    element.replaceChildren(toNode(tree));
    element.className = "";
  } catch {
    // A wrong formula stays the text that it is.
  }
}

/**
 * @param {any} node of Temml
 * @returns {Node}
 */
function toNode(node) {
  if (typeof node.text === "string") return document.createTextNode(node.text);
  /** @type {Node[]} */
  const children = (node.children ?? []).map(toNode);
  if (!ELEMENTS.has(node.type)) {
    const plain = document.createDocumentFragment();
    plain.append(...children);
    return plain;
  }
  const element = /** @type {MathMLElement} */ (document.createElementNS(MATHML, node.type));
  for (const [name, value] of Object.entries(node.attributes ?? {})) {
    if (ATTRIBUTES.has(name)) element.setAttribute(name, String(value));
  }
  for (const [name, value] of Object.entries(node.style ?? {})) {
    if (STYLES.has(name)) /** @type {any} */ (element.style)[name] = value;
  }
  for (const name of node.classes ?? []) if (/^tml-[a-z]+$/.test(name)) element.classList.add(name);
  element.append(...children);
  return element;
}
