/**
 * Plots as SVG: lines over time, columns, and bars with labels. Our own, because what pages need is
 * small, and a library that writes HTML or inline styles would not pass the content policy. Used by
 * every page with figures; colours come from style sheets (--series-1 to --series-6).
 */

import { h } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 6;
const MARGIN = { top: 8, right: 8, bottom: 22, left: 46 };

/** @typedef {{name: string, points: [number, number][]}} Series points (x, y), by increasing x */

/**
 * Make an SVG element.
 * @param {string} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {...(Node | string)} children
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/**
 * Return round numbers that cover a range: at most about `count` of them.
 * @param {number} low
 * @param {number} high
 * @param {number} [count]
 */
export function ticks(low, high, count = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((each) => each * power >= rough) ?? 10);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) {
    found.push(Number((at * step).toPrecision(12)));
  }
  return found;
}

/**
 * Write a number with few digits: 0.0123, 4.56, 789, 12.3k.
 * @param {number} value
 */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${Number((value / 1e9).toPrecision(3))}G`;
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return String(Number(value.toPrecision(3)));
}

/** The frame of a plot: its size follows the element, and it draws once per frame of the screen. */
class Plot {
  /**
   * @param {object} options
   * @param {string} options.label what the plot shows, for its title and screen readers
   * @param {number} [options.height] pixels
   * @param {(y: number) => string} [options.formatY]
   */
  constructor({ label, height = 160, formatY = short }) {
    this.label = label;
    this.height = height;
    this.formatY = formatY;
    this.width = 0;
    /** @type {number | undefined} */
    this.frame = undefined;
    this.svg = svg("svg", { class: "plot-canvas", role: "img", "aria-label": label, height });
    this.legend = h("div", { class: "plot-legend" });
    this.element = h("figure", { class: "plot" }, h("figcaption", {}, label), this.legend, this.svg);
    new ResizeObserver(() => {
      this.width = this.svg.clientWidth;
      this.drawSoon();
    }).observe(this.element);
  }

  drawSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      if (this.width > 0) this.svg.replaceChildren(...this.parts());
    });
  }

  /** @returns {Node[]} */
  parts() {
    return [];
  }

  /** The space between the axes. */
  get room() {
    return {
      width: Math.max(1, this.width - MARGIN.left - MARGIN.right),
      height: this.height - MARGIN.top - MARGIN.bottom,
    };
  }

  /**
   * Draw the lines and numbers of the y axis.
   * @param {number} low
   * @param {number} high
   */
  axisY(low, high) {
    const { height, width } = this.room;
    return ticks(low, high, 4).flatMap((value) => {
      const y = MARGIN.top + height * (1 - (value - low) / (high - low || 1));
      return [
        svg("line", { class: "plot-grid", x1: MARGIN.left, x2: MARGIN.left + width, y1: y, y2: y }),
        svg("text", { class: "plot-tick", x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, this.formatY(value)),
      ];
    });
  }

  /**
   * @param {number} x
   * @param {string} text
   * @param {string} [anchor]
   */
  tickX(x, text, anchor = "middle") {
    return svg("text", { class: "plot-tick", x, y: this.height - 6, "text-anchor": anchor }, text);
  }

  /** @param {{name: string, text?: string}[]} entries one for each colour, in their order */
  showLegend(entries) {
    this.legend.replaceChildren(
      ...entries.map(({ name, text = "" }, number) =>
        h("span", { class: `plot-key ${colour(number)}` }, name, text && h("b", {}, text)),
      ),
    );
  }
}

/** Lines over a common x axis, such as time; the pointer reads values off. */
export class LinePlot extends Plot {
  /**
   * @param {object} options
   * @param {string} options.label
   * @param {number} [options.height]
   * @param {(x: number) => string} [options.formatX]
   * @param {(y: number) => string} [options.formatY]
   * @param {number} [options.top] the y axis ends here or at the largest value; it begins at 0
   */
  constructor({ label, height, formatX = short, formatY, top = 0 }) {
    super({ label, height, formatY });
    this.formatX = formatX;
    this.top = top;
    /** @type {Series[]} */
    this.series = [];
    /** @type {number | null} x of the pointer, as a share of the width */
    this.pointer = null;
    this.svg.addEventListener("pointermove", (/** @type {any} */ event) => {
      const box = this.svg.getBoundingClientRect();
      this.pointer = (event.clientX - box.left - MARGIN.left) / this.room.width;
      this.drawSoon();
    });
    this.svg.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.drawSoon();
    });
  }

  /** @param {Series[]} series */
  show(series) {
    this.series = series;
    this.drawSoon();
  }

  /** @override */
  parts() {
    const { series, room } = this;
    let [low, high, most] = [Infinity, -Infinity, this.top];
    for (const { points } of series) {
      for (const [x, y] of points) {
        low = Math.min(low, x);
        high = Math.max(high, x);
        if (Number.isFinite(y)) most = Math.max(most, y);
      }
    }
    const at = this.pointer === null ? high : low + this.pointer * (high - low);
    const read = series.map(({ points }) => nearest(points, at));
    this.showLegend(
      series.map(({ name }, number) => ({ name, text: read[number] ? this.formatY(read[number][1]) : "–" })),
    );
    const values = series.map(({ name }, number) => `${name} ${read[number] ? this.formatY(read[number][1]) : "none"}`);
    this.svg.setAttribute("aria-label", `${this.label}: ${values.join(", ")}`);
    if (!(high >= low)) return [this.tickX(MARGIN.left + room.width / 2, "no values yet")];
    const top = most > 0 ? most * 1.05 : 1;
    const toX = (/** @type {number} */ x) => MARGIN.left + (room.width * (x - low)) / (high - low || 1);
    const toY = (/** @type {number} */ y) => MARGIN.top + room.height * (1 - y / top);
    const lines = series.map(({ points }, number) => svg("path", { class: `plot-line ${colour(number)}`, d: pathOf(points, toX, toY) }));
    const marks = read.flatMap((point, number) =>
      point && this.pointer !== null
        ? [svg("circle", { class: `plot-mark ${colour(number)}`, cx: toX(point[0]), cy: toY(point[1]), r: 3 })]
        : [],
    );
    const numbers = ticks(low, high, Math.max(2, Math.floor(room.width / 90)));
    return [
      ...this.axisY(0, top),
      ...numbers.map((x) => this.tickX(toX(x), this.formatX(x))),
      ...lines,
      ...marks,
    ];
  }
}

/** Columns side by side, in one or several colours; the pointer reads them off. */
export class ColumnPlot extends Plot {
  /**
   * @param {object} options
   * @param {string} options.label
   * @param {number} [options.height]
   * @param {(y: number) => string} [options.formatY]
   */
  constructor(options) {
    super(options);
    /** @type {{name: string, values: (number | null)[], title?: string}[]} */
    this.columns = [];
    /** @type {string[]} */
    this.names = [];
  }

  /**
   * @param {{name: string, values: (number | null)[], title?: string}[]} columns each with one value
   *   for every colour; null draws none; title is shown at the pointer
   * @param {string[]} [names] of the colours, for the legend
   */
  show(columns, names = []) {
    this.columns = columns;
    this.names = names;
    this.drawSoon();
  }

  /** @override */
  parts() {
    const { columns, room } = this;
    this.showLegend(this.names.map((name) => ({ name })));
    if (columns.length === 0) return [this.tickX(MARGIN.left + room.width / 2, "no values yet")];
    const most = Math.max(...columns.flatMap(({ values }) => values.map((value) => value ?? 0)));
    const top = most > 0 ? most * 1.05 : 1;
    const step = room.width / columns.length;
    const gap = Math.min(4, step * 0.2);
    const every = Math.ceil(44 / step); // so that names do not overlap
    const bars = columns.flatMap(({ name, values, title = name }, number) => {
      const wide = Math.max(1, (step - gap) / values.length);
      return values.map((value, place) => {
        const tall = (room.height * (value ?? 0)) / top;
        const x = MARGIN.left + number * step + gap / 2 + place * wide;
        const bar = { x, y: MARGIN.top + room.height - tall, width: wide, height: tall };
        return svg("rect", { class: `plot-bar ${colour(place)}`, ...bar }, svg("title", {}, title));
      });
    });
    const names = columns.flatMap(({ name }, number) =>
      number % every === 0 ? [this.tickX(MARGIN.left + (number + 0.5) * step, name.slice(0, 8))] : [],
    );
    return [...this.axisY(0, top), ...bars, ...names];
  }
}

/**
 * Make a list of horizontal bars with labels and values; text stays text, and is never cut off.
 * @param {{name: string, share: number, text: string, isChosen?: boolean}[]} bars share: 0 to 1
 */
export function barList(bars) {
  return h(
    "ul",
    { class: "bars" },
    ...bars.map(({ name, share, text, isChosen = false }) => {
      const bar = h("span", { class: "bar-fill" });
      bar.style.setProperty("--share", String(Math.max(0, Math.min(1, share))));
      return h(
        "li",
        { class: isChosen ? "chosen" : null },
        h("span", { class: "bar-name" }, name),
        h("span", { class: "bar-value" }, text),
        h("span", { class: "bar-track", "aria-hidden": "true" }, bar),
      );
    }),
  );
}

/** @param {number} number */
function colour(number) {
  return `series-${(number % COLOURS) + 1}`;
}

/**
 * @param {[number, number][]} points
 * @param {(x: number) => number} toX
 * @param {(y: number) => number} toY
 */
function pathOf(points, toX, toY) {
  let path = "";
  let isDown = false; // a value that is not finite leaves a gap
  for (const [x, y] of points) {
    if (Number.isFinite(y)) path += `${isDown ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`;
    isDown = Number.isFinite(y);
  }
  return path;
}

/**
 * @param {[number, number][]} points
 * @param {number} x
 */
function nearest(points, x) {
  /** @type {[number, number] | null} */
  let best = null;
  for (const point of points) {
    if (Number.isFinite(point[1]) && (best === null || Math.abs(point[0] - x) <= Math.abs(best[0] - x))) {
      best = point;
    }
  }
  return best;
}
