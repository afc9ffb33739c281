/** The clipboard. Used by every view with a copy button. */

/**
 * Copy a text; say whether the browser allowed it.
 * @param {string} text
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
