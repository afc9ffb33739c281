/**
 * One answer while it is generated: appends the stream to a message, measures time, can be stopped.
 * Used by chat.js; knows the server's deltas, not the page.
 */

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Message} Message */
/** @typedef {import("./api.js").Server} Server */

/** Streams one answer. */
export class Answer {
  /**
   * @param {Conversation} conversation
   * @param {Message} message to which the answer is appended
   */
  constructor(conversation, message) {
    this.conversation = conversation;
    this.message = message;
    this.controller = new AbortController();
    this.started = performance.now();
    this.first = 0;
    this.generated = 0;
  }

  /** Stop the request; the text received so far stays in the message. */
  stop() {
    this.controller.abort();
  }

  /**
   * Send the request and append the answer to the message as it arrives. Returns when the answer is
   * over or was stopped; rejects with the error.
   * @param {Server} server
   * @param {Record<string, unknown>} request
   * @param {(text: string) => void} onText called after each change of the message
   */
  async stream(server, request, onText) {
    const { message } = this;
    delete message.stats;
    delete message.finish;
    try {
      for await (const delta of server.chat(request, this.controller.signal)) {
        this.take(delta, Boolean(request.logprobs));
        if (delta.text || delta.reasoning || delta.calls.length > 0 || delta.tokens.length > 0) onText(delta.text);
      }
    } catch (error) {
      if (!this.controller.signal.aborted) {
        message.finish = "error";
        throw error;
      }
      message.finish = "stopped";
    }
  }

  /**
   * @param {import("./api.js").Delta} delta
   * @param {boolean} counted whether the server sends every token
   */
  take({ text, reasoning, calls, tokens, finish, usage }, counted) {
    const { message } = this;
    const isAny = text !== "" || reasoning !== "" || calls.length > 0;
    if (this.first === 0 && (isAny || tokens.length > 0)) this.first = performance.now();
    this.generated += counted ? tokens.length : Number(isAny);
    if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
    for (const piece of calls) takeCall((message.calls ??= []), piece);
    const before = message.content;
    message.content += text;
    if (tokens.length > 0) {
      message.tokens ??= before ? [{ text: before }] : [];
      message.tokens.push(...tokens);
    } else if (!counted && text) {
      message.tokens?.push({ text });
    }
    if (finish) message.finish = finish;
    if (usage) this.generated = usage.generated;
    message.stats = this.stats(usage);
  }

  /** @param {import("./api.js").Delta["usage"]} usage */
  stats(usage) {
    const { started, first, generated } = this;
    const seconds = (performance.now() - first) / 1000;
    return {
      prompt: usage?.prompt ?? 0,
      reused: usage?.reused ?? 0,
      dropped: usage?.dropped ?? 0,
      generated,
      first: first === 0 ? 0 : (first - started) / 1000,
      rate: generated > 1 && seconds > 0 ? (generated - 1) / seconds : 0,
    };
  }
}

/**
 * Add a piece of a tool call to the calls so far.
 * @param {import("./conversation.js").ToolCall[]} calls
 * @param {import("./api.js").Delta["calls"][number]} piece
 */
function takeCall(calls, { index, id, name, arguments: text }) {
  while (calls.length <= index) calls.push({ id: "", name: "", arguments: "" });
  const call = calls[index];
  call.id ||= id;
  call.name ||= name;
  call.arguments += text;
}
