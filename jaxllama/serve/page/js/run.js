/**
 * A batch on the page: progress, the table of its answers, and one answer with its tokens. Used by
 * batch.js; knows the server by `Batches` only.
 */

import { asServerError } from "./api.js";
import { askedIn, bodyWith, isOver } from "./batches.js";
import { copyText } from "./clipboard.js";
import { counted, partElements } from "./compose.js";
import { byId, download, h } from "./dom.js";
import { Follower } from "./follow.js";
import { tokensOf } from "./logprobs.js";
import { toCsv } from "./rows.js";
import { ResultTable } from "./table.js";
import { TokenView } from "./tokens.js";

/** @typedef {import("./batches.js").Batch} Batch */
/** @typedef {import("./batches.js").Answered} Answered */

/**
 * @typedef {Answered & {prompt: string, isRepeat: boolean}} AnswerRow prompt: its last message;
 *   isRepeat: whether an answer before it has the same text
 */

const STATUS = new Map([
  ["validating", "Waiting"],
  ["in_progress", "Running"],
  ["finalizing", "Finishing"],
  ["cancelling", "Cancelling"],
  ["cancelled", "Cancelled"],
  ["completed", "Completed"],
  ["expired", "Expired"],
  ["failed", "Failed"],
]);
const ENDINGS = new Map([["length", "token limit"], ["stop", "stop"], ["failed", "failed"]]);
const ALTERNATIVES = 5;

/** Shows one batch at a time. */
export class Run {
  /**
   * @param {object} parts
   * @param {import("./batches.js").Batches} parts.batches
   * @param {import("./notices.js").Notices} parts.notices
   * @param {() => void} parts.onChange called when the batch changed its status or its counts
   * @param {(error: unknown) => void} parts.onFault
   */
  constructor({ batches, notices, onChange, onFault }) {
    this.batches = batches;
    this.notices = notices;
    this.onChange = onChange;
    this.onFault = onFault;
    /** @type {Follower | null} */
    this.follower = null;
    /** @type {string[]} lines of the input */
    this.input = [];
    /** @type {Set<string>} */
    this.texts = new Set();
    /** @type {AnswerRow | null} */
    this.open = null;
    /** @type {AnswerRow[]} */
    this.detailOrder = [];
    this.tokens = new TokenView();
    this.tokenPlace = h("div", { id: "tokens" });
    /** @type {ResultTable<AnswerRow>} */
    this.table = new ResultTable({
      label: "Answers",
      empty: "No answers yet.",
      columns: columns([]),
      onOpen: (row) => this.showDetail(row),
    });
    byId("results").append(this.table.element);
    byId("find").addEventListener("input", () => this.filter());
    byId("once").addEventListener("change", () => this.filter());
    for (const button of document.querySelectorAll("[data-download]")) {
      const kind = /** @type {HTMLElement} */ (button).dataset.download ?? "";
      button.addEventListener("click", () => this.save(kind));
    }
    byId("detail-close").addEventListener("click", () => this.closeDetail());
    byId("detail-before").addEventListener("click", () => this.step(-1));
    byId("detail-after").addEventListener("click", () => this.step(1));
    byId("detail-copy").addEventListener("click", () => this.copy());
    byId("run").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Escape" || event.defaultPrevented || byId("detail").hidden) return;
      event.preventDefault();
      this.closeDetail();
    });
  }

  /**
   * Show a batch, and follow it until another is shown.
   * @param {Batch} batch
   * @param {string[]} [input] the lines of its input, if they are known
   */
  async show(batch, input) {
    this.leave();
    byId("detail").hidden = true;
    byId("find").value = "";
    byId("once").checked = false;
    this.table.filter(null);
    this.table.set([]);
    const follower = new Follower(this.batches, batch, {
      onAnswers: (answers) => this.add(answers),
      onChange: () => this.showProgress(),
      onFault: this.onFault,
    });
    this.follower = follower;
    this.showProgress();
    try {
      this.input = input ?? (await this.batches.input(batch));
    } catch (error) {
      if (!follower.isStopped) this.onFault(error);
      return;
    }
    if (follower.isStopped) return;
    this.table.setColumns(columns(this.input));
    await follower.run();
  }

  /** Stop following. */
  leave() {
    this.follower?.stop();
    this.follower = null;
    this.input = [];
    this.texts.clear();
    this.open = null;
  }

  /** @param {Answered[]} answers */
  add(answers) {
    const rows = answers.map((answer) => {
      const isRepeat = !answer.error && this.texts.has(answer.text);
      if (!answer.error) this.texts.add(answer.text);
      return { ...answer, prompt: askedText(this.input[answer.line] ?? ""), isRepeat };
    });
    this.table.append(rows);
    this.showCount();
  }

  filter() {
    const words = byId("find").value.toLowerCase();
    const once = byId("once").checked;
    const has = (/** @type {AnswerRow} */ { text, prompt, error }) =>
      text.toLowerCase().includes(words) || prompt.toLowerCase().includes(words) || error.toLowerCase().includes(words);
    this.table.filter(words || once ? (row) => !(once && row.isRepeat) && (!words || has(row)) : null);
    this.showCount();
  }

  showCount() {
    const { view, rows } = this.table;
    byId("shown").textContent = view.length === rows.length ? "" : `${view.length} of ${counted(rows.length, "answer")}`;
  }

  showProgress() {
    const { follower } = this;
    if (!follower) return;
    const { batch, speed, tokens } = follower;
    const { total, completed, failed } = batch.request_counts;
    const progress = byId("progress");
    progress.max = Math.max(total, 1);
    progress.value = completed + failed;
    const over = isOver(batch);
    const parts = [
      `${(completed + failed).toLocaleString("en")} of ${counted(total, "answer")}`,
      ...(failed > 0 ? [`${failed} failed`] : []),
      ...(tokens > 0 ? [counted(tokens, "token")] : []),
      ...(speed && !over ? [`${speed.tokens.toFixed(1)} tokens/s`, `${duration(speed.left)} left`] : []),
      ...(over && batch.in_progress_at && batch.completed_at
        ? [`took ${duration(Math.max(1, batch.completed_at - batch.in_progress_at))}`]
        : []),
    ];
    byId("figures").replaceChildren(
      h("b", {}, STATUS.get(batch.status) ?? batch.status),
      ` · ${parts.join(" · ")}`,
      ...(batch.errors?.data ?? []).map(({ line, message }) =>
        h("span", { class: "wrong" }, ` ${line ? `Line ${line}: ` : ""}${message}.`),
      ),
    );
    byId("cancel").hidden = over;
    byId("cancel").disabled = batch.status === "cancelling" || batch.status === "finalizing";
    byId("delete").hidden = !over;
    this.onChange();
  }

  /** @param {string} kind of file: json, jsonl or csv */
  save(kind) {
    const { follower, input } = this;
    if (!follower) return;
    const several = this.table.rows.some(({ answer }) => answer > 0);
    const rows = this.table.view.map(({ index, id, answer, line, text, finish, tokens, error }) => ({
      index,
      ...(id && { id }),
      ...(several && { answer }),
      ...promptFields(input[line] ?? ""),
      ...(error ? { error } : { text, finish_reason: finish, tokens }),
    }));
    const name = `batch-${follower.batch.id.slice(-6)}.${kind}`;
    if (kind === "json") download(name, `${JSON.stringify(rows, null, 1)}\n`);
    else if (kind === "jsonl") download(name, rows.map((row) => `${JSON.stringify(row)}\n`).join(""), "application/jsonl");
    else {
      const names = ["index", "id", "answer", "prompt", "text", "finish_reason", "tokens", "error"];
      const cells = this.table.view.map((row) => [
        row.index, row.id, row.answer, row.prompt, row.text, row.finish, row.tokens, row.error,
      ]);
      download(name, toCsv(names, cells), "text/csv");
    }
  }

  /** @param {AnswerRow} row */
  showDetail(row) {
    this.open = row;
    byId("detail").hidden = false;
    byId("detail-title").textContent = `Answer ${row.answer + 1} to prompt ${row.index + 1}`;
    const asked = this.input[row.line];
    byId("detail-body").replaceChildren(
      section("Prompt", h("div", { class: "preview" }, ...partElements(asked ? askedIn(asked) : []))),
      row.error
        ? section("Error", h("p", { class: "wrong" }, row.error))
        : section("Answer", h("div", { class: "answer" }, row.text)),
      h("p", { class: "hint" }, describe(row)),
      row.error ? "" : section("Tokens", this.tokenPlace),
    );
    this.tokenPlace.replaceChildren(h("p", { class: "hint" }, "Asking the model…"));
    byId("detail-title").focus();
    if (!row.error) this.showTokens(row);
  }

  /**
   * Show an answer's tokens: as they were recorded, or of the same request asked again, since the
   * same seed gives the same text.
   * @param {AnswerRow} row
   */
  async showTokens(row) {
    const { batch } = /** @type {Follower} */ (this.follower);
    let { logprobs, text } = row;
    try {
      if (!logprobs) {
        const isChat = batch.endpoint.includes("chat");
        const fields = isChat ? { logprobs: true, top_logprobs: ALTERNATIVES } : { logprobs: ALTERNATIVES };
        const response = await this.batches.server.fetch(batch.endpoint, {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: bodyWith(this.input[row.line], fields),
        });
        const [choice] = (await response.json()).choices;
        logprobs = choice.logprobs;
        text = choice.message?.content ?? choice.text;
      }
    } catch (error) {
      if (this.open === row) this.tokenPlace.replaceChildren(h("p", { class: "wrong" }, asServerError(error).message));
      return;
    }
    if (this.open !== row) return;
    this.tokens.show(tokensOf(logprobs));
    this.tokenPlace.replaceChildren(
      this.tokens.element,
      text === row.text
        ? ""
        : h("p", { class: "hint" }, "These are the tokens of the same request asked again; the text is another one, so the model or its settings changed."),
    );
  }

  /** @param {number} by */
  step(by) {
    const { view } = this.table;
    const place = view.indexOf(/** @type {AnswerRow} */ (this.open)) + by;
    if (place < 0 || place >= view.length) return;
    this.table.activate(place);
    this.showDetail(view[place]);
  }

  closeDetail() {
    this.open = null;
    byId("detail").hidden = true;
    this.table.element.focus();
  }

  async copy() {
    if (await copyText(this.open?.text ?? "")) this.notices.inform("Copied.");
    else this.notices.warn("The browser does not let this page copy: select the text instead.");
  }
}

/**
 * Return the columns of the table.
 * @param {string[]} input lines of the input; what is the same in all of them gets no column
 * @returns {import("./table.js").Column<AnswerRow>[]}
 */
function columns(input) {
  const ids = input.map((line) => /"custom_id": "(\d+)\.(\d+)/.exec(line));
  const hasPrompts = ids.some((id) => id?.[1] !== "0");
  const hasAnswers = ids.some((id) => id?.[2] !== "0");
  return [
    ...(hasPrompts
      ? [{ name: "index", title: "Prompt", width: "5rem", isNumber: true, text: (/** @type {AnswerRow} */ { index }) => String(index + 1), value: (/** @type {AnswerRow} */ { line }) => line }]
      : []),
    ...(hasAnswers
      ? [{ name: "answer", title: "Answer", width: "5rem", isNumber: true, text: (/** @type {AnswerRow} */ { answer }) => String(answer + 1), value: (/** @type {AnswerRow} */ { answer }) => answer }]
      : []),
    { name: "text", title: "Text", width: "minmax(16rem, 3fr)", text: ({ text, error }) => error || text },
    ...(hasPrompts ? [{ name: "prompt", title: "Asked", width: "minmax(12rem, 2fr)", text: (/** @type {AnswerRow} */ { prompt }) => prompt }] : []),
    { name: "tokens", title: "Tokens", width: "5.5rem", isNumber: true, text: ({ tokens }) => String(tokens), value: ({ tokens }) => tokens },
    { name: "finish", title: "End", width: "7rem", text: ({ finish }) => ENDINGS.get(finish) ?? finish },
  ];
}

/** @param {string} line of the input */
function askedText(line) {
  return line === "" ? "" : (askedIn(line).at(-1)?.content ?? "");
}

/** @param {string} line of the input */
function promptFields(line) {
  if (line === "") return {};
  const { body } = JSON.parse(line);
  return body.messages ? { messages: body.messages } : { prompt: body.prompt };
}

/** @param {AnswerRow} row */
function describe({ tokens, finish, id, isRepeat }) {
  return [
    counted(tokens, "token"),
    `ended by ${ENDINGS.get(finish) ?? finish}`,
    ...(id ? [`id ${id}`] : []),
    ...(isRepeat ? ["the same text as an answer before it"] : []),
  ].join(" · ");
}

/**
 * @param {string} title
 * @param {HTMLElement} content
 */
function section(title, content) {
  return h("section", {}, h("h3", {}, title), content);
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
