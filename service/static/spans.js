// Marks parts of a text. Offsets come in Unicode code points; strings of JavaScript count UTF-16 units.

import { el } from "./dom.js";

/** A function from code points to UTF-16 units of `text`. */
export function unitsOf(text) {
  const starts = [];
  let unit = 0;
  for (const character of text) {
    starts.push(unit);
    unit += character.length;
  }
  return (point) => (point < starts.length ? starts[point] : text.length);
}

const LONG = 1500; // UTF-16 units: beyond, the box scrolls, and must be reached by keyboard

export const countPoints = (text) => [...text].length;

/**
 * The text as an element, with `spans` ({start, end, wrap}) around parts of it, where wrap(part) makes the node, and
 * what is after `end` set apart as not read. Spans must not overlap; all offsets are code points.
 */
export function markedText(text, spans, end = null) {
  const unit = unitsOf(text);
  const long = { class: "marked long", tabindex: "0", role: "region", "aria-label": "The text" };
  const box = el("p", { ...(text.length > LONG ? long : { class: "marked" }), dir: "auto" });
  let at = 0;
  for (const span of [...spans].sort((one, other) => one.start - other.start)) {
    const [from, to] = [unit(span.start), unit(span.end)];
    if (from < at || to <= from) continue;
    box.append(text.slice(at, from), span.wrap(text.slice(from, to)));
    at = to;
  }
  const cut = end === null ? text.length : Math.max(at, unit(end));
  box.append(text.slice(at, cut));
  if (cut < text.length) {
    box.append(el("span", { class: "cut" }, "cut here"), el("del", { class: "unread" }, text.slice(cut)));
  }
  return box;
}
