/**
 * A table that stays quick at many thousands of rows: only the rows in view are elements, and
 * scrolling reuses them. Sorts by a click on a column's title; arrow keys move, Enter opens a row.
 * Used by every page with results; knows neither what a row is nor where it comes from.
 */

import { h } from "./dom.js";

/**
 * @template Row
 * @typedef {object} Column
 * @property {string} name
 * @property {string} title
 * @property {string} width a track of a CSS grid that begins with rem: "6rem", "minmax(12rem, 1fr)"
 * @property {(row: Row) => string} text
 * @property {(row: Row) => string | number | null} [value] to sort by, else the text; null is last
 * @property {boolean} [isNumber] whether to align the text at its end
 * @property {(row: Row) => number} [share] from 0 to 1, drawn as a bar behind the text
 */

const ROW_PIXELS = 36;
const AHEAD = 6; // rows above and below the view that are elements, too
const LONGEST = 300; // characters of a cell that are shown
let tables = 0;

/**
 * Shows rows in columns.
 * @template Row
 */
export class ResultTable {
  /**
   * @param {object} options
   * @param {string} options.label for screen readers
   * @param {Column<Row>[]} options.columns
   * @param {string} [options.empty] shown in place of rows while there are none
   * @param {(row: Row) => void} [options.onOpen] called when the reader chooses a row
   */
  constructor({ label, columns, empty = "", onOpen = () => {} }) {
    tables += 1;
    this.id = `table-${tables}`;
    this.onOpen = onOpen;
    /** @type {Row[]} all rows, in the order in which they came */
    this.rows = [];
    /** @type {Row[]} the rows that pass the filter, sorted */
    this.view = [];
    /** @type {((row: Row) => boolean) | null} */
    this.passes = null;
    this.columns = columns;
    /** @type {{column: Column<Row>, sign: 1 | -1} | null} */
    this.order = null;
    this.active = 0; // place in the view
    /** @type {Line<Row>[]} */
    this.lines = [];
    /** @type {number | undefined} */
    this.frame = undefined;
    this.head = h("div", { class: "table-head", role: "row", "aria-rowindex": 1 });
    this.body = h("div", { class: "table-body", role: "rowgroup" });
    this.note = h("p", { class: "table-note hint" }, empty);
    this.element = h(
      "div",
      {
        class: "table",
        role: "grid",
        "aria-label": label,
        tabindex: 0,
        onscroll: () => this.drawSoon(),
        onkeydown: (/** @type {KeyboardEvent} */ event) => this.move(event),
        onclick: (/** @type {MouseEvent} */ event) => this.click(event),
        onfocus: () => this.mark(),
      },
      h("div", { role: "rowgroup" }, this.head),
      this.body,
    );
    this.setColumns(columns);
    new ResizeObserver(() => this.drawSoon()).observe(this.element);
  }

  /**
   * Replace the columns; the rows stay.
   * @param {Column<Row>[]} columns
   */
  setColumns(columns) {
    this.columns = columns;
    this.element.style.setProperty("--columns", columns.map(({ width }) => width).join(" "));
    const least = columns.reduce((sum, { width }) => sum + (parseFloat(/[\d.]+/.exec(width)?.[0] ?? "") || 0), 0);
    this.element.style.setProperty("--least", `${least}rem`);
    this.head.replaceChildren(...columns.map((column) => this.title(column)));
    if (this.order && !columns.includes(this.order.column)) this.order = null;
    for (const line of this.lines) line.element.remove();
    this.lines = [];
    this.refresh();
  }

  /** @param {Row[]} rows */
  set(rows) {
    this.rows = [...rows];
    this.active = 0;
    this.element.scrollTop = 0;
    this.refresh();
  }

  /**
   * Add rows at the end; those that are there are not sorted again.
   * @param {Row[]} rows
   */
  append(rows) {
    for (const row of rows) this.rows.push(row);
    const added = this.passes ? rows.filter(this.passes) : rows;
    if (this.order) {
      this.view = merge(this.view, this.sorted(added), this.comparison(this.order));
    } else {
      for (const row of added) this.view.push(row);
    }
    this.drawSoon();
  }

  /** Filter and sort again, after rows were changed. */
  refresh() {
    const { passes } = this;
    this.view = this.sorted(passes ? this.rows.filter(passes) : [...this.rows]);
    this.active = Math.max(0, Math.min(this.active, this.view.length - 1));
    for (const line of this.lines) line.place = -1;
    this.drawSoon();
  }

  /** @param {((row: Row) => boolean) | null} passes null shows all rows */
  filter(passes) {
    this.passes = passes;
    this.refresh();
  }

  /**
   * Sort by a column; the same one again: descending, then in the order in which the rows came.
   * @param {Column<Row>} column
   */
  sortBy(column) {
    const { order } = this;
    if (order?.column !== column) this.order = { column, sign: 1 };
    else this.order = order.sign === 1 ? { column, sign: -1 } : null;
    for (const [place, { name }] of this.columns.entries()) {
      const sign = this.order?.column.name === name ? this.order.sign : 0;
      const words = sign === 0 ? "none" : sign > 0 ? "ascending" : "descending";
      this.head.children[place].setAttribute("aria-sort", words);
    }
    this.refresh();
  }

  /** @param {Column<Row>} column */
  title(column) {
    const sort = () => this.sortBy(column);
    return h(
      "div",
      { role: "columnheader", "aria-sort": "none", class: column.isNumber ? "number" : null },
      h("button", { type: "button", onclick: sort }, column.title),
    );
  }

  /** @param {Row[]} rows */
  sorted(rows) {
    if (this.order) return rows.sort(this.comparison(this.order));
    return rows;
  }

  /** @param {{column: Column<Row>, sign: 1 | -1}} order */
  comparison({ column, sign }) {
    const valueOf = column.value ?? column.text;
    return (/** @type {Row} */ one, /** @type {Row} */ other) => {
      const [a, b] = [valueOf(one), valueOf(other)];
      if (a === b) return 0;
      if (a === null) return 1;
      if (b === null) return -1;
      return (a < b ? -1 : 1) * sign;
    };
  }

  drawSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  /** Give each row in view a line, and reuse the lines of rows that have left. */
  draw() {
    const { element, body, view, lines } = this;
    const first = Math.max(0, Math.floor(element.scrollTop / ROW_PIXELS) - AHEAD);
    const wanted = Math.ceil(element.clientHeight / ROW_PIXELS) + 2 * AHEAD;
    const count = Math.min(wanted, view.length);
    while (lines.length < count) {
      const line = new Line(this.columns, `${this.id}-${lines.length}`);
      lines.push(line);
      body.append(line.element);
    }
    element.setAttribute("aria-rowcount", String(view.length + 1));
    body.style.height = `${view.length * ROW_PIXELS}px`;
    for (const [number, line] of lines.entries()) {
      // The line of row n is n modulo the number of lines, so most lines keep their rows.
      const place = first + ((((number - first) % lines.length) + lines.length) % lines.length);
      line.show(place < view.length ? view[place] : null, place);
    }
    if (view.length === 0) body.append(this.note);
    else this.note.remove();
    this.mark();
  }

  /** Mark the line of the active row. */
  mark() {
    let marked = "";
    for (const line of this.lines) {
      const isActive = line.place === this.active && !line.element.hidden;
      line.element.setAttribute("aria-selected", String(isActive));
      if (isActive) marked = line.element.id;
    }
    if (marked) this.element.setAttribute("aria-activedescendant", marked);
    else this.element.removeAttribute("aria-activedescendant");
  }

  /**
   * Make a row of the view the active one, and scroll to it.
   * @param {number} place
   */
  activate(place) {
    const { element, view } = this;
    this.active = Math.max(0, Math.min(place, view.length - 1));
    const top = this.active * ROW_PIXELS;
    const room = element.clientHeight - this.head.offsetHeight - ROW_PIXELS;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top > element.scrollTop + room) element.scrollTop = top - room;
    this.draw();
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    if (event.target !== this.element) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / ROW_PIXELS) - 2);
    /** @type {Record<string, number>} */
    const targets = {
      ArrowDown: this.active + 1,
      ArrowUp: this.active - 1,
      PageDown: this.active + page,
      PageUp: this.active - page,
      Home: 0,
      End: this.view.length - 1,
    };
    if (event.key in targets) {
      event.preventDefault();
      this.activate(targets[event.key]);
    } else if (event.key === "Enter" && this.view.length > 0) {
      event.preventDefault();
      this.onOpen(this.view[this.active]);
    }
  }

  /** @param {MouseEvent} event */
  click({ target }) {
    const line = this.lines.find(({ element }) => element.contains(/** @type {Node} */ (target)));
    if (!line || line.place >= this.view.length) return;
    this.active = line.place;
    this.mark();
    this.onOpen(this.view[line.place]);
  }
}

/**
 * The elements of one row in view.
 * @template Row
 */
class Line {
  /**
   * @param {Column<Row>[]} columns
   * @param {string} id
   */
  constructor(columns, id) {
    this.columns = columns;
    this.place = -1;
    /** @type {Row | null} */
    this.row = null;
    this.cells = columns.map(({ isNumber, share }) => {
      const names = [isNumber && "number", share && "shared"].filter(Boolean).join(" ");
      return h("div", { role: "gridcell", class: names || null }, " ");
    });
    this.element = h("div", { class: "table-row", role: "row", id }, ...this.cells);
  }

  /**
   * @param {Row | null} row
   * @param {number} place
   */
  show(row, place) {
    if (this.place === place && this.row === row) return;
    this.row = row;
    this.place = place;
    this.element.hidden = row === null;
    if (row === null) return;
    this.element.setAttribute("aria-rowindex", String(place + 2));
    this.element.style.transform = `translateY(${place * ROW_PIXELS}px)`;
    for (const [number, { text, share }] of this.columns.entries()) {
      const cell = this.cells[number];
      /** @type {Text} */ (cell.firstChild).data = text(row).slice(0, LONGEST).replace(/\s+/g, " ");
      if (share) cell.style.setProperty("--share", String(share(row)));
    }
  }
}

/**
 * Merge two sorted lists.
 * @template Row
 * @param {Row[]} one
 * @param {Row[]} other
 * @param {(one: Row, other: Row) => number} compare
 */
function merge(one, other, compare) {
  /** @type {Row[]} */
  const merged = [];
  let place = 0;
  for (const row of other) {
    while (place < one.length && compare(one[place], row) <= 0) {
      merged.push(one[place]);
      place += 1;
    }
    merged.push(row);
  }
  return merged.concat(one.slice(place));
}
