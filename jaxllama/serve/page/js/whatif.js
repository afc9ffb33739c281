/**
 * What if another token had been drawn: the answer up to a token, and the other token after it. Used
 * by message.js; knows messages and tokens, not the page.
 */

/** @typedef {import("./conversation.js").Alternative} Alternative */
/** @typedef {import("./conversation.js").Message} Message */
/** @typedef {import("./conversation.js").Token} Token */
/** @typedef {{content: string, tokens: Token[]}} Start of another version of an answer */

/**
 * Return the start of an answer that has another token at a place; null if there is none: the token
 * is in the thoughts, it ends the answer, or the text would end inside a character.
 * @param {Message} message
 * @param {number} place of the token
 * @param {Alternative} other
 * @returns {Start | null}
 */
export function startWith({ content, tokens = [] }, place, other) {
  if (other.isControl) return null;
  const all = textOf(tokens, true);
  const through = textOf([...tokens.slice(0, place), other]);
  const before = textOf(tokens.slice(0, place), true);
  if (all === null || through === null || before === null) return null;
  // Thoughts, a space at the start, and tokens that end the answer are not in its text.
  const skipped = all.lastIndexOf(content);
  const end = textOf(tokens.slice(0, place + 1), true)?.length ?? 0;
  if (skipped < 0 || end <= skipped || before.length >= skipped + content.length) return null;
  const isFirst = before.length < skipped;
  const { top, topSampled } = tokens[place];
  const sampled = topSampled?.find(({ text }) => text === other.text)?.logprob;
  const token = { ...other, ...(sampled !== undefined && { sampled }), ...(top && { top }), ...(topSampled && { topSampled }) };
  return {
    content: isFirst ? through.slice(before.length).trimStart() : through.slice(skipped),
    tokens: structuredClone([...tokens.slice(0, place), token]),
  };
}

/**
 * Join tokens to a text; null if they end inside a character.
 * @param {(Token | Alternative)[]} tokens
 * @param {boolean} [isLoose] whether half a character counts as U+FFFD
 */
function textOf(tokens, isLoose = false) {
  const encoder = new TextEncoder();
  const parts = tokens.map(({ text, bytes }) => (bytes ? new Uint8Array(bytes) : encoder.encode(text)));
  try {
    return new TextDecoder("utf-8", { fatal: !isLoose, ignoreBOM: true }).decode(joined(parts));
  } catch {
    return null;
  }
}

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let place = 0;
  for (const part of parts) {
    whole.set(part, place);
    place += part.length;
  }
  return whole;
}
