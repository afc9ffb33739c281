/**
 * What the reader chose on the pages, in the browser's localStorage: forms, open panels, settings.
 * Used by every page; knows only names and values.
 */

const CHOICES = "jaxllama.choices";

/**
 * Return the preferences: which conversation and which panels are open.
 * @returns {Record<string, unknown>}
 */
export function readChoices() {
  try {
    const choices = JSON.parse(localStorage.getItem(CHOICES) ?? "{}");
    return typeof choices === "object" && choices !== null ? choices : {};
  } catch {
    return {};
  }
}

/** @param {Record<string, unknown>} changed */
export function keepChoices(changed) {
  try {
    localStorage.setItem(CHOICES, JSON.stringify({ ...readChoices(), ...changed }));
  } catch {
    // Preferences are optional: without storage the page opens with its defaults.
  }
}
