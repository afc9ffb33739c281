/**
 * The branches of a conversation. A message where lines part holds the other lines, each from its
 * place to its end; the list of messages is the line that is shown. Used by chat.js and
 * conversation.js; knows messages, not the page.
 */

/** @typedef {import("./conversation.js").Message} Message */

/**
 * @typedef {object} Fork of a message whose place has several versions
 * @property {number} shown number of the version that is shown, from 0
 * @property {Message[][]} others the lines of the other versions, in order
 */

/**
 * Put a new line in place of the messages from a place on, which become another version.
 * @param {Message[]} messages changed in place
 * @param {number} place
 * @param {Message[]} line at least one message
 */
export function branch(messages, place, line) {
  const versions = takeVersions(messages, place);
  showVersion(messages, place, [...versions, line], versions.length);
}

/**
 * Show another version of the message at a place, with all that follows it there.
 * @param {Message[]} messages changed in place
 * @param {number} place
 * @param {number} number of the version
 */
export function turnTo(messages, place, number) {
  showVersion(messages, place, takeVersions(messages, place), number);
}

/**
 * Remove the shown version of the message at a place, and show another one if there is one.
 * @param {Message[]} messages changed in place
 * @param {number} place
 * @param {number} number of the version to show, as they are counted before
 */
export function prune(messages, place, number) {
  const shown = messages[place].fork?.shown ?? 0;
  const versions = takeVersions(messages, place);
  versions.splice(shown, 1);
  if (versions.length > 0) showVersion(messages, place, versions, number > shown ? number - 1 : number);
}

/**
 * Remove a message; what follows it stays, and so do the other versions of its place.
 * @param {Message[]} messages changed in place
 * @param {number} place
 * @returns {() => void} puts it back
 */
export function remove(messages, place) {
  const [message, next] = [messages[place], messages.at(place + 1)];
  const { fork } = message;
  if (fork === undefined) {
    messages.splice(place, 1);
    return () => messages.splice(place, 0, message);
  }
  if (next === undefined) {
    prune(messages, place, fork.shown === 0 ? 1 : fork.shown - 1);
    return () => branch(messages, place, [message]);
  }
  const inner = next.fork;
  messages.splice(place, 1);
  delete message.fork;
  const { shown, others } = inner ?? { shown: 0, others: [] };
  next.fork = { shown: fork.shown + shown, others: fork.others.toSpliced(fork.shown, 0, ...others) };
  return () => {
    if (messages[place] === next) {
      message.fork = fork;
      if (inner) next.fork = inner;
      else delete next.fork;
    }
    messages.splice(place, 0, message);
  };
}

/**
 * Return how many versions there are of a message, and which of them is shown.
 * @param {Message} message
 */
export function versionsOf({ fork }) {
  return { count: (fork?.others.length ?? 0) + 1, shown: fork?.shown ?? 0 };
}

/**
 * Yield the messages of all lines.
 * @param {Message[]} messages
 * @returns {Generator<Message>}
 */
export function* allMessages(messages) {
  for (const message of messages) {
    yield message;
    for (const line of message.fork?.others ?? []) yield* allMessages(line);
  }
}

/**
 * Return copies of messages for another line: each with an id of its own, and one version.
 * @param {Message[]} messages
 * @returns {Message[]}
 */
export function copiesOf(messages) {
  return messages.map(({ fork: _, ...message }) => ({ ...structuredClone(message), id: crypto.randomUUID() }));
}

/**
 * Cut the messages from a place on, and return the lines of all versions there.
 * @param {Message[]} messages
 * @param {number} place
 */
function takeVersions(messages, place) {
  const line = messages.splice(place);
  if (line.length === 0) return [];
  const { shown, others } = line[0].fork ?? { shown: 0, others: [] };
  delete line[0].fork;
  return others.toSpliced(shown, 0, line);
}

/**
 * @param {Message[]} messages
 * @param {number} place
 * @param {Message[][]} versions
 * @param {number} number
 */
function showVersion(messages, place, versions, number) {
  const shown = Math.max(0, Math.min(number, versions.length - 1));
  messages.push(...versions[shown]);
  if (versions.length > 1) messages[place].fork = { shown, others: versions.toSpliced(shown, 1) };
}
