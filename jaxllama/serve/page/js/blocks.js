/**
 * Reads Markdown into the blocks of marked, a kept library: as a text grows, only its last blocks
 * are parsed again. Adds formulas to marked's syntax. Used by markdown.js; makes no elements.
 */

import { Lexer, Marked } from "../vendor/marked/marked.esm.js";

/** @typedef {any} MarkdownToken a token of marked: `type`, `raw`, and more by type */

const REREAD = 2; // the last line may still join the block before the last one
const BLOCK_FORMULA = /^ {0,3}(?:\$\$((?:(?!\n\n)[^])+?)\$\$|\\\[((?:(?!\n\n)[^])+?)\\\])[ \t]*(?:\n+|$)/;
const BLOCK_START = /\n {0,3}(?:\$\$|\\\[)/;
// As in pandoc: no space inside the signs, no digit after them, so that prices stay text.
const FORMULA = /^(?:\$\$([^$]+?)\$\$|\$(?![\s$])((?:\\.|[^\\$\n])+?)(?<!\s)\$(?![\d$])|\\\(([^]+?)\\\))/;
const FORMULA_START = /\$|\\\(/;

const marked = new Marked({
  gfm: true,
  extensions: [
    {
      name: "formula-block",
      level: "block",
      start: (/** @type {string} */ text) => indexOf(text, BLOCK_START),
      tokenizer: (/** @type {string} */ text) => formula(text, BLOCK_FORMULA, "formula-block"),
    },
    {
      name: "formula",
      level: "inline",
      start: (/** @type {string} */ text) => indexOf(text, FORMULA_START),
      tokenizer: (/** @type {string} */ text) => formula(text, FORMULA, "formula"),
    },
  ],
});

/** Reads a growing text. */
export class BlockReader {
  constructor() {
    this.text = "";
    /** @type {MarkdownToken[]} */
    this.blocks = [];
    this.hasLinks = false; // definitions of links: they change text that stands before them
  }

  /**
   * Return the blocks of a text; blocks that did not change are the objects of the last call.
   * @param {string} text
   * @returns {MarkdownToken[]}
   */
  read(text) {
    const plain = text.replace(/\r\n?/g, "\n");
    const { count, length } = plain.startsWith(this.text) ? this.kept() : { count: 0, length: 0 };
    let { blocks, hasLinks } = lex(plain.slice(length));
    if (this.hasLinks || hasLinks) {
      ({ blocks, hasLinks } = lex(plain));
    } else {
      const old = this.blocks;
      blocks = [...old.slice(0, count), ...blocks.map((each, place) => sameOf(old[count + place], each))];
    }
    [this.text, this.blocks, this.hasLinks] = [plain, blocks, hasLinks];
    return blocks;
  }

  /** Return how many blocks need not be parsed again when text is added, and their length. */
  kept() {
    const { blocks } = this;
    let [count, left] = [blocks.length, REREAD];
    for (; count > 0 && left > 0; count -= 1) left -= Number(blocks[count - 1].type !== "space");
    // Without an empty line between them, the next block may join the one before.
    while (count > 0 && blocks[count - 1].type !== "space") count -= 1;
    const text = blocks.slice(0, count).map(({ raw }) => raw).join("");
    // marked writes some blocks in another way than they stand in the text.
    return this.text.startsWith(text) ? { count, length: text.length } : { count: 0, length: 0 };
  }
}

/**
 * Return the block that was there before, if the new one says the same.
 * @param {MarkdownToken | undefined} old
 * @param {MarkdownToken} block
 */
function sameOf(old, block) {
  return old?.type === block.type && old?.raw === block.raw ? old : block;
}

/** @param {string} text */
function lex(text) {
  const lexer = new Lexer(marked.defaults);
  const blocks = [...lexer.lex(text)];
  return { blocks, hasLinks: Object.keys(lexer.tokens.links).length > 0 };
}

/**
 * @param {string} text
 * @param {RegExp} pattern
 * @returns {number | undefined}
 */
function indexOf(text, pattern) {
  const found = pattern.exec(text);
  return found === null ? undefined : found.index + Number(found[0].startsWith("\n"));
}

/**
 * @param {string} text
 * @param {RegExp} pattern
 * @param {string} type
 */
function formula(text, pattern, type) {
  const found = pattern.exec(text);
  if (found === null) return undefined;
  const [raw, ...sources] = found;
  const source = sources.find((each) => each !== undefined) ?? "";
  return { type, raw, text: source.trim(), wide: /^ *(?:\$\$|\\\[)/.test(raw) };
}
