// Shows which words an answer hangs on, as POST …/explain says: each word's effect on the label's score.

import { el, plural } from "./dom.js";
import { markedText } from "./spans.js";

const STRENGTHS = 4; // classes by-1 to by-4
const FAINT = 0.04; // of the strongest effect: left unmarked
const LISTED = 10;

const signed = (effect) => `${effect < 0 ? "−" : "+"}${Math.abs(effect).toFixed(3)}`;

/** The explained texts, a legend and a list of the strongest words. */
export function words(explained, input, ends) {
  const strongest = Math.max(...explained.words.map(({ effect }) => Math.abs(effect)), 1e-9);
  const shown = explained.words.filter(({ effect }) => Math.abs(effect) >= FAINT * strongest);
  const box = el("div", { class: "explained" }, el("h4", {}, "Why ", el("q", {}, explained.label), "?"), legend(explained.label));
  for (const [index, [field, text]] of [["text", input.text], ["text_pair", input.pair]].entries()) {
    if (text === null) continue;
    const spans = shown.filter((word) => word.field === field).map((word) => span(word, strongest, explained.label));
    box.append(markedText(text, spans, ends?.[index] ?? null));
  }
  box.append(list(explained.words));
  return box;
}

function span({ start, end, effect }, strongest, label) {
  const strength = Math.max(1, Math.ceil((STRENGTHS * Math.abs(effect)) / strongest));
  const told = `${effect < 0 ? "against" : "for"} ${label}: ${signed(effect)}`;
  const name = `word ${effect < 0 ? "against" : "for"} by-${Math.min(STRENGTHS, strength)}`;
  return { start, end, wrap: (part) => el("span", { class: name, title: told }, part) };
}

function legend(label) {
  const sample = (side) => el("span", { class: `word ${side} by-3` }, side === "for" ? "solid line" : "dashed line");
  return el(
    "p",
    { class: "legend soft" },
    sample("for"),
    ` speaks for ${label}, `,
    sample("against"),
    " against it; the thicker, the more. The score was asked again without each word.",
  );
}

function list(all) {
  const ranked = [...all].sort((one, other) => Math.abs(other.effect) - Math.abs(one.effect)).slice(0, LISTED);
  const rows = ranked.map(({ text, effect }) =>
    el("tr", {}, el("td", { dir: "auto" }, text), el("td", {}, effect < 0 ? "against" : "for"), el("td", { class: "number" }, signed(effect))),
  );
  const head = el("tr", {}, ...["Word", "Speaks", "Effect on the score"].map((name) => el("th", { scope: "col" }, name)));
  return el(
    "details",
    {},
    el("summary", {}, `The ${plural(ranked.length, "strongest word", "strongest words")} in numbers`),
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)),
  );
}
