/**
 * Server-sent events: parses the bytes of a response. Used by api.js, because EventSource cannot
 * POST. Knows no JSON.
 */

/**
 * Yield the data of every event in a stream of bytes; comments, such as pings, are skipped.
 * @param {ReadableStream<Uint8Array>} bytes
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(bytes) {
  const reader = bytes.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r?\n/);
      rest = /** @type {string} */ (lines.pop());
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
