// Line charts in SVG. A chart is a figure with a caption, the latest value, and its range in words.

import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [300, 100];

export class Chart {
  #path = shape("path", { class: "line" });
  #area = shape("path", { class: "area" });
  #latest = element("output");
  #top = element("span");
  #since = element("span");
  #svg;
  #unit;
  #title;

  /** `unit` turns a value into words; `max` is the least height of the scale. */
  constructor(title, unit, max) {
    this.#title = title;
    this.#unit = unit;
    this.max = max;
    this.#svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    for (const y of [0, HEIGHT / 2, HEIGHT]) {
      this.#svg.append(shape("line", { class: "axis", x1: 0, x2: WIDTH, y1: y, y2: y }));
    }
    this.#svg.append(this.#area, this.#path);
    const caption = element("figcaption", {}, element("span", {}, title), this.#latest);
    this.node = element("figure", {}, caption, this.#svg,
      element("p", {}, this.#since, this.#top, element("span", {}, "now")));
    this.draw([], 1, "");
  }

  /** Draw values, oldest first, null where there is none; `capacity` values, or more, fill the width. */
  draw(values, capacity, since) {
    capacity = Math.max(capacity, values.length);
    this.#since.textContent = since;
    const known = values.filter((value) => value !== null);
    const top = Math.max(this.max, ...known);
    const x = (at) => (WIDTH * (at + capacity - values.length)) / Math.max(capacity - 1, 1);
    const y = (value) => HEIGHT * (1 - value / top);
    let line = "";
    let area = "";
    let start = -1;
    values.forEach((value, at) => {
      const begins = value !== null && (at === 0 || values[at - 1] === null);
      if (begins) start = at;
      if (value !== null) line += `${begins ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      const ends = value !== null && (at === values.length - 1 || values[at + 1] === null);
      if (ends) area += `M${x(start).toFixed(1)} ${HEIGHT}` + corners(values, start, at, x, y) + `L${x(at).toFixed(1)} ${HEIGHT}Z`;
    });
    this.#path.setAttribute("d", line);
    this.#area.setAttribute("d", area);
    const latest = values.at(-1) ?? null;
    this.#latest.textContent = latest === null ? "none" : this.#unit(latest);
    this.#top.textContent = known.length ? `top of scale ${this.#unit(top)}` : "no data yet";
    const range = known.length ? `from ${this.#unit(Math.min(...known))} to ${this.#unit(Math.max(...known))}` : "no data";
    this.#svg.setAttribute("aria-label", `${this.#title}: now ${this.#latest.textContent}, ${range}`);
  }
}

function corners(values, start, end, x, y) {
  let path = "";
  for (let at = start; at <= end; at += 1) path += `L${x(at).toFixed(1)} ${y(values[at]).toFixed(1)}`;
  return path;
}

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
