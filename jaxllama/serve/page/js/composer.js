/**
 * The message field, which grows with its text, and the button that sends or stops. Used by
 * chat.js; knows nothing of conversations.
 */

import { byId } from "./dom.js";

/** Controls the message field and its button. */
export class Composer {
  /** @param {{send: (text: string) => boolean, stop: () => void}} actions */
  constructor({ send, stop }) {
    this.form = byId("composer");
    this.field = byId("text");
    this.button = byId("send");
    this.isAnswering = false;
    this.mayBeEmpty = false;
    this.form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      if (this.isAnswering) stop();
      else this.submit(send);
    });
    this.field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      // While an input method composes a character, it uses Enter itself.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.isAnswering) this.submit(send);
    });
    this.field.addEventListener("input", () => this.show());
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || !this.isAnswering) return;
      // The first Escape closes an open drawer or menu.
      if (document.querySelector(":popover-open") === null) stop();
    });
  }

  /** @param {(text: string) => boolean} send */
  submit(send) {
    const text = this.field.value;
    if (!text.trim() && !this.mayBeEmpty) return;
    if (!send(text.trim() ? text : "")) return;
    this.field.value = "";
    this.show();
  }

  /**
   * @param {{answering: boolean, mayBeEmpty: boolean}} state mayBeEmpty: there is a message
   *   without an answer, so there is something to send
   */
  update({ answering, mayBeEmpty }) {
    this.isAnswering = answering;
    this.mayBeEmpty = mayBeEmpty;
    this.show();
  }

  show() {
    const label = this.isAnswering ? "Stop" : "Send";
    this.form.toggleAttribute("data-answering", this.isAnswering);
    this.button.setAttribute("aria-label", label);
    this.button.title = this.isAnswering ? "Stop (Esc)" : "Send (Enter)";
    const idle = !this.isAnswering && !this.mayBeEmpty && !this.field.value.trim();
    this.button.setAttribute("aria-disabled", String(idle));
  }

  /**
   * Put a text where the cursor is.
   * @param {string} text
   */
  insert(text) {
    const { field } = this;
    const before = field.value.slice(0, field.selectionStart);
    const line = before === "" || before.endsWith("\n") ? "" : "\n";
    field.setRangeText(line + text, field.selectionStart, field.selectionEnd, "end");
    field.focus();
    this.show();
  }

  focus() {
    this.field.focus();
  }
}
