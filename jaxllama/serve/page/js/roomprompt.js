/**
 * The request for what a speaker of a room says next, or for who speaks next. Plain data in, plain
 * data out; knows neither page nor server.
 */

/** @typedef {import("./roomclient.js").Room} Room */
/** @typedef {import("./roomclient.js").Speaker} Speaker */
/** @typedef {import("./roomclient.js").Block} Block */
/** @typedef {{role: "system" | "user" | "assistant", content: string}} Turn */

const BEGINNING = "(The conversation begins.)"; // prompt formats want a user's turn first
const NAME_TOKENS = 64;

/**
 * Return the fields of a chat request for a speaker.
 * @param {Room} room
 * @param {Speaker} speaker
 * @param {Block[]} blocks what was said before
 * @param {string} begun text of the speaker's turn so far
 * @returns {Record<string, unknown>}
 */
export function speech(room, speaker, blocks, begun) {
  const knobs = speaker.knobs;
  const isScript = room.style === "script";
  const own = Array.isArray(knobs.stop) ? knobs.stop : [];
  const ends = room.break_on_newline ? ["\n"] : room.speakers.map(({ name }) => `\n${name}:`);
  const messages = isScript ? script(room, speaker, blocks, begun) : chat(room, speaker, blocks, begun);
  return {
    max_tokens: room.max_response_tokens,
    ...knobs,
    ...(speaker.model && { model: speaker.model }),
    ...(isScript && { format: "plain" }),
    ...((isScript || begun) && { continue_final_message: true, add_generation_prompt: false }),
    messages,
    stop: [...own, ...ends],
    context_overflow: "drop_oldest",
  };
}

/**
 * Return the fields of a chat request that chooses who speaks next.
 * @param {Room} room
 * @param {string[]} names to choose from
 * @returns {Record<string, unknown>}
 */
export function nextSpeaker(room, names) {
  const said = room.blocks.map((block) => ({ role: "user", content: line(block) }));
  const question = `Who speaks next: ${names.join(", ")}? Answer with the name alone.`;
  const messages = merged([...system(room, ""), ...said, { role: "user", content: question }]);
  return { messages, choices: names, max_tokens: NAME_TOKENS, context_overflow: "drop_oldest" };
}

/**
 * @param {Room} room
 * @param {Speaker} speaker
 * @param {Block[]} blocks
 * @param {string} begun
 * @returns {Turn[]}
 */
function chat(room, speaker, blocks, begun) {
  const isNamed = room.speakers.length > 2;
  /** @type {any[]} */
  const turns = blocks.map((block) => {
    if (block.author === speaker.name) return { role: "assistant", content: block.text };
    return { role: "user", content: isNamed ? line(block).trimEnd() : block.text };
  });
  const before = system(room, instructions(speaker));
  if (turns[0]?.role !== "user" && before.at(-1)?.role !== "user") {
    turns.unshift({ role: "user", content: BEGINNING });
  }
  if (begun) turns.push({ role: "assistant", content: begun });
  return merged([...before, ...turns]);
}

/**
 * @param {Room} room
 * @param {Speaker} speaker
 * @param {Block[]} blocks
 * @param {string} begun
 * @returns {Turn[]}
 */
function script(room, speaker, blocks, begun) {
  const before = system(room, instructions(speaker)).map((turn) => ({ ...turn, content: `${turn.content}\n` }));
  const said = blocks.map((block) => /** @type {Turn} */ ({ role: "user", content: line(block) }));
  const head = `${speaker.name}:${begun && ` ${begun}`}`;
  return [...before, ...said, { role: "assistant", content: head }];
}

/**
 * A fixed prompt that need not be kept is a turn like others, which a full context drops.
 * @param {Room} room
 * @param {string} own the speaker's instructions
 * @returns {Turn[]}
 */
function system(room, own) {
  const fixed = room.fixed_prompt.trim();
  const kept = [room.keep_fixed_prompt ? fixed : "", own].filter(Boolean).join("\n\n");
  /** @type {Turn[]} */
  const turns = kept ? [{ role: "system", content: kept }] : [];
  if (fixed && !room.keep_fixed_prompt) turns.push({ role: "user", content: fixed });
  return turns;
}

/** @param {Speaker} speaker */
function instructions({ name, system: text }) {
  return text.trim().replaceAll("{name}", name);
}

/** @param {Block} block */
function line({ author, text }) {
  return author === null ? `${text}\n` : `${author}: ${text}\n`;
}

/**
 * Join turns of the same role that follow each other: prompt formats want them to alternate.
 * @param {any[]} turns
 * @returns {Turn[]}
 */
function merged(turns) {
  /** @type {Turn[]} */
  const found = [];
  for (const turn of turns) {
    const last = found.at(-1);
    if (last && last.role === turn.role) last.content = `${last.content.trimEnd()}\n${turn.content}`;
    else found.push({ ...turn });
  }
  return found;
}
