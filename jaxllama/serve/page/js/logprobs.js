/**
 * Log-probabilities in the two forms of the API (chat and completions), as tokens for `TokenView`.
 * Knows no page.
 */

/** @typedef {import("./conversation.js").Token} Token */

/**
 * Return the tokens of an answer.
 * @param {any} logprobs of a choice; null if there are none
 * @returns {Token[]}
 */
export function tokensOf(logprobs) {
  if (Array.isArray(logprobs?.content)) {
    return logprobs.content.map((/** @type {any} */ entry) => ({
      text: entry.token,
      logprob: entry.logprob,
      sampled: entry.sampled_logprob,
      top: entry.top_logprobs?.map((/** @type {any} */ other) => ({ text: other.token, logprob: other.logprob })),
    }));
  }
  const { tokens = [], token_logprobs = [], top_logprobs = [] } = logprobs ?? {};
  return tokens.map((/** @type {string} */ text, /** @type {number} */ place) => ({
    text,
    logprob: token_logprobs[place] ?? undefined,
    top: Object.entries(top_logprobs[place] ?? {}).map(([other, logprob]) => ({ text: other, logprob: Number(logprob) })),
  }));
}
