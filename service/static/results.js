// Shows what a model said of one text: scores as bars, entities in the text, what was cut, where the time went.

import { tags } from "./api.js";
import { el, plural } from "./dom.js";
import { countPoints, markedText } from "./spans.js";
import { words } from "./words.js";

const SHOWN = 8; // bars; further labels are folded away
const OPEN = 10; // rows of a table that is not folded away
const COLORS = 6; // classes kind-0 to kind-5

export const number = (score) => score.toFixed(3);
export const milliseconds = (time) => `${time < 10 ? time.toFixed(2) : time.toFixed(0)} ms`;

/** One line that says it all, for the status and for screen readers. */
export function inWords({ model, result, error }) {
  const name = `${model.name} ${model.version}`;
  if (error) return `${name}: ${error.message}`;
  if (tags(model)) return `${name}: ${plural(result.entities.length, "entity", "entities")}`;
  if (model.thresholds) return `${name}: ${result.predicted?.join(", ") || "no label reaches its threshold"}`;
  const [best] = result.labels;
  return `${name}: ${best.label}, ${number(best.score)}`;
}

/** Whether two answers agree; null where they cannot be compared. */
export function compared([one, other]) {
  if (!one?.result || !other?.result || tags(one.model) || tags(other.model)) return null;
  const scores = new Map(other.result.labels.map(({ label, score }) => [label, score]));
  const shared = one.result.labels.filter(({ label }) => scores.has(label));
  if (!shared.length) return "They have no label in common.";
  const decided = ({ model, result }) => (model.thresholds ? [...result.predicted].sort() : [result.labels[0].label]);
  const [first, second] = [decided(one), decided(other)];
  const same = first.join("\n") === second.join("\n");
  const most = Math.max(0, ...shared.map(({ label, score }) => Math.abs(score - scores.get(label))));
  return `${same ? "Both say the same" : "They disagree"}; scores differ by at most ${number(most)}.`;
}

/** The card of one answer. */
export function card(answer) {
  const { model, input, result, error } = answer;
  const box = el("article", { class: "card" }, el("h3", {}, `${model.name} `, el("small", {}, `version ${model.version}`)));
  if (error) {
    box.append(el("p", { class: "message error" }, error.message));
    return box;
  }
  if (tags(model)) box.append(...entities(input.text, answer));
  else box.append(bars(model, result), ...doubt(model, result));
  if (answer.explained) box.append(words(answer.explained, input, answer.ends));
  if (answer.notExplained) box.append(el("p", { class: "message" }, `No explanation: ${answer.notExplained.message}`));
  box.append(...cut(answer), latency(answer));
  return box;
}

function bars(model, result) {
  const given = new Set(result.predicted ?? [result.labels[0]?.label]);
  const lines = result.labels.map(({ label, score }) => bar(label, score, given.has(label), model.thresholds?.[label]));
  const list = (items) => el("ol", { class: "bars" }, ...items);
  if (lines.length <= SHOWN + 2) return list(lines);
  const more = el("details", {}, el("summary", {}, `${lines.length - SHOWN} more labels`), list(lines.slice(SHOWN)));
  return el("div", {}, list(lines.slice(0, SHOWN)), more);
}

function bar(label, score, given, threshold) {
  const fill = el("span", { class: "fill" });
  fill.style.width = percent(score);
  const track = el("span", { class: "track", "aria-hidden": "true" }, fill);
  const line = el("li", { class: given ? "given" : "" }, el("span", { class: "label", dir: "auto" }, label), track);
  const told = el("span", { class: "number", title: String(score) }, number(score));
  line.append(told);
  if (threshold !== undefined) {
    const tick = el("span", { class: "tick" });
    tick.style.insetInlineStart = percent(threshold);
    track.append(tick);
    line.append(el("span", { class: "soft" }, `${given ? "given: reaches" : "not given: below"} ${threshold.toFixed(2)}`));
  }
  return line;
}

const percent = (share) => `${(100 * Math.min(1, Math.max(0, share))).toFixed(2)}%`;

function doubt(model, result) {
  if (model.abstention === null || result.labels[0].score >= model.abstention) return [];
  return [el("p", { class: "message" }, `Not sure: the bundle abstains below ${model.abstention.toFixed(3)}.`)];
}

function entities(text, { model, result, ends }) {
  const kinds = [...new Set(model.labels.map((tag) => tag.replace(/^[BIESLU]-/, "")))].filter((kind) => kind !== "O");
  const color = (kind) => `kind-${Math.max(0, kinds.indexOf(kind)) % COLORS}`;
  const spans = result.entities.map(({ entity, score, start, end }) => ({
    start,
    end,
    wrap: (part) =>
      el(
        "mark",
        { class: `entity ${color(entity)}`, title: `${entity}, ${number(score)}`, dir: "auto" },
        el("span", {}, part),
        el("span", { class: "kind" }, entity),
      ),
  }));
  const points = [...text];
  const rows = result.entities.map(({ entity, score, start, end }) =>
    el("tr", {}, el("td", { dir: "auto" }, points.slice(start, end).join("")), el("td", {}, entity), el("td", { class: "number" }, number(score))),
  );
  if (!rows.length) return [markedText(text, [], ends?.[0] ?? null), el("p", { class: "soft" }, "No entities were found.")];
  const head = el("tr", {}, ...["Entity", "Kind", "Score"].map((name) => el("th", { scope: "col" }, name)));
  const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
  const folded = el("details", { open: rows.length <= OPEN }, el("summary", {}, `${plural(rows.length, "entity", "entities")} in numbers`), table);
  return [markedText(text, spans, ends?.[0] ?? null), folded];
}

function cut({ model, input, result, ends, explained }) {
  if (!result.truncated) return [el("p", { class: "soft" }, `${plural(result.tokens, "token")} read, all of the text.`)];
  const most = `the model reads ${model.max_length} tokens`;
  const texts = [input.text, ...(input.pair === null ? [] : [input.pair])];
  if (!ends) return [el("p", { class: "message" }, `The text was cut: ${most}.`)];
  const points = texts.map(countPoints);
  const left = points.reduce((sum, count, index) => sum + Math.max(0, count - ends[index]), 0);
  const told = el("p", { class: "message" }, `The text was cut: ${most}, and ${plural(left, "character")} at the end were not read.`);
  if (tags(model) || explained) return [told]; // the text above shows where
  return [told, ...texts.map((text, index) => markedText(text, [], ends[index]))];
}

function latency({ timing, roundTrip }) {
  if (!timing) return el("p", { class: "soft" }, `${milliseconds(roundTrip)} in all.`);
  const rest = Math.max(0, timing.total - timing.tokenize - timing.queue - timing.inference);
  const parts = [
    ["tokenize", "reading and tokenizing", timing.tokenize],
    ["queue", "queue", timing.queue],
    ["inference", "inference", timing.inference],
    ["rest", "writing the answer", rest],
  ];
  const strip = el("div", { class: "strip", "aria-hidden": "true" });
  for (const [name, , time] of parts) {
    const piece = el("span", { class: name });
    piece.style.flexGrow = String(time);
    strip.append(piece);
  }
  const told = parts.map(([name, shown, time]) =>
    el("li", {}, el("span", { class: `swatch ${name}`, "aria-hidden": "true" }), `${shown} `, el("b", {}, milliseconds(time))),
  );
  const total = `${milliseconds(timing.total)} in the service, ${milliseconds(roundTrip)} as this browser saw it`;
  return el("div", { class: "latency" }, el("h4", {}, "Time of this call"), strip, el("ul", {}, ...told), el("p", { class: "soft" }, total));
}
