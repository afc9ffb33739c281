/**
 * A column at the side of a page: beside the content if there is room, else over it. Used for the
 * navigation and the settings; knows nothing of its content.
 */

import { byId } from "./dom.js";

/** Opens and closes one column. */
export class Drawer {
  /**
   * @param {string} id of the column
   * @param {{opener: string, wide: string, isOpen?: boolean, onToggle?: (open: boolean) => void}} options
   *   opener: the button's id; wide: media query under which the column is beside the content
   */
  constructor(id, { opener, wide, isOpen = false, onToggle = () => {} }) {
    this.element = byId(id);
    this.button = byId(opener);
    this.wide = matchMedia(wide);
    this.onToggle = onToggle;
    this.button.addEventListener("click", () => this.toggle(!this.isOpen));
    this.element.querySelector("[data-close]").addEventListener("click", () => this.toggle(false));
    byId("veil").addEventListener("click", () => this.isOver && this.toggle(false));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.isOver || event.defaultPrevented) return;
      event.preventDefault();
      this.toggle(false);
    });
    this.wide.addEventListener("change", () => this.show());
    this.isOpen = isOpen && this.wide.matches;
    this.show();
  }

  /** Whether the column covers the content now. */
  get isOver() {
    return this.isOpen && !this.wide.matches;
  }

  /** @param {boolean} open */
  toggle(open) {
    this.isOpen = open;
    this.onToggle(open);
    this.show();
    const first = this.element.querySelector("[data-first]") ?? this.element.querySelector("a, button");
    (open ? first : this.button).focus();
  }

  /** Close the column if it covers the content. */
  makeWay() {
    if (!this.isOver) return;
    this.isOpen = false;
    this.show();
  }

  show() {
    this.element.toggleAttribute("data-open", this.isOpen);
    this.button.setAttribute("aria-expanded", String(this.isOpen));
    this.element.toggleAttribute("data-over", this.isOver);
    const anyIsOver = document.querySelector("[data-over]") !== null;
    /** @type {HTMLElement} */ (document.querySelector("main")).inert = anyIsOver;
    byId("veil").hidden = !anyIsOver;
  }
}
