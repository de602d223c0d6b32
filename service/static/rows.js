// From a file to rows with texts, and from rows with answers to a file of the same kind.

import { isFormula, parseDelimited, quoted } from "./csv.js";

const DELIMITERS = { csv: ",", tsv: "\t" };
const MEDIA_TYPES = { csv: "text/csv", tsv: "text/tab-separated-values", jsonl: "application/jsonl" };
const PREFIX = "limbeck_"; // of added columns whose names are taken

/** A file that was read: {kind, columns, rows: {line, raw, values}, bad: {line, problem}}. Raises Error in plain words. */
export async function readFile(file) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()); // takes a BOM away
  } catch (error) {
    if (error instanceof TypeError) throw new Error(`${file.name} is not UTF-8. Save it as UTF-8 and try again.`);
    throw new Error(`${file.name} cannot be read: ${error.message}`);
  }
  const kind = kindOf(file.name, text);
  const found = kind === "jsonl" ? readObjects(text) : readTable(text, DELIMITERS[kind]);
  if (!found.columns.length) throw new Error(`${file.name} has no column of texts.`);
  return { ...found, kind, name: file.name };
}

function kindOf(name, text) {
  if (/\.(jsonl|ndjson)$/i.test(name)) return "jsonl";
  if (/\.csv$/i.test(name)) return "csv";
  if (/\.(tsv|tab)$/i.test(name)) return "tsv";
  if (text.trimStart().startsWith("{")) return "jsonl";
  return text.split(/[\r\n]/, 1)[0].includes("\t") ? "tsv" : "csv";
}

function readTable(text, delimiter) {
  const [header, ...records] = parseDelimited(text, delimiter);
  if (!header) throw new Error("The file is empty.");
  if (header.problem) throw new Error(`Line ${header.line}, with the names of the columns: ${header.problem}.`);
  const columns = header.fields;
  const [rows, bad] = [[], []];
  for (const { line, raw, fields, problem } of records) {
    const wrong = problem ?? (fields.length === columns.length ? null : `found ${fields.length} fields, expected ${columns.length}`);
    if (wrong) bad.push({ line, problem: wrong });
    else rows.push({ line, raw, values: fields });
  }
  return { columns, keys: new Set(columns), header: header.raw, rows, bad };
}

function readObjects(text) {
  const [rows, bad, keys, columns] = [[], [], new Set(), new Set()];
  text.split("\n").forEach((given, index) => {
    const [raw, line] = [given.trim(), index + 1];
    if (!raw) return;
    try {
      const values = JSON.parse(raw);
      if (values === null || typeof values !== "object" || Array.isArray(values)) throw new Error("expected a JSON object");
      for (const [key, value] of Object.entries(values)) {
        keys.add(key);
        if (typeof value === "string") columns.add(key);
      }
      rows.push({ line, raw, values });
    } catch (error) {
      bad.push({ line, problem: error instanceof SyntaxError ? "not JSON" : error.message });
    }
  });
  return { columns: [...columns], keys, rows, bad };
}

/** The text of a row, or undefined where there is none; a column is its place in a table, its key in an object. */
export function textOf(table, row, column) {
  const found = table.kind === "jsonl" ? row.values[table.columns[column]] : row.values[column];
  return typeof found === "string" && found.trim() !== "" ? found : undefined;
}

/** How many rows, the names of the columns among them, have a field that a spreadsheet would take for a formula. */
export const countFormulas = ({ kind, columns, rows }) =>
  kind === "jsonl" ? 0 : [{ values: columns }, ...rows].filter(({ values }) => values.some(isFormula)).length;

/** What a model adds to a row, by name of the column. */
export function added(model, result) {
  if (result.entities) {
    return { entities: result.entities.map(({ entity, score, start, end }) => ({ entity, score, start, end })) };
  }
  if (!model.thresholds) return { label: result.labels[0].label, score: result.labels[0].score };
  const scores = new Map(result.labels.map(({ label, score }) => [label, score]));
  return { labels: result.predicted, scores: result.predicted.map((label) => scores.get(label)) };
}

/** The results as a Blob and a name for it; `guard` puts an apostrophe before what looks like a formula. */
export function writeFile(table, done, names, guard) {
  let prefix = "";
  while (names.some((name) => table.keys.has(prefix + name))) prefix += PREFIX; // a file that was classified before
  const finals = names.map((name) => prefix + name);
  const lines = table.kind === "jsonl" ? objectLines(done, names, finals) : tableLines(table, done, names, finals, guard);
  const name = table.name.replace(/(\.[^.]*)?$/, (ending) => `.classified${ending || `.${table.kind}`}`);
  return { name, blob: new Blob(lines, { type: `${MEDIA_TYPES[table.kind]};charset=utf-8` }) };
}

function* objects(done, names, finals) {
  for (const { row, more } of done) {
    const rest = JSON.stringify(Object.fromEntries(finals.map((final, index) => [final, more[names[index]]])));
    const open = row.raw.slice(0, -1).trimEnd(); // as it stands: numbers that JavaScript would round, too
    yield `${open}${open === "{" ? "" : ","}${rest.slice(1)}\n`;
  }
}
const objectLines = (...given) => [...objects(...given)];

function tableLines({ kind, columns, header }, done, names, finals, guard) {
  const delimiter = DELIMITERS[kind];
  const safe = (field) => quoted(guard && isFormula(field) ? `'${field}` : field, delimiter);
  const first = guard && columns.some(isFormula) ? columns.map(safe).join(delimiter) : header;
  const lines = [[first, ...finals].join(delimiter)];
  for (const { row, more } of done) {
    const asItStands = !guard || !row.values.some(isFormula);
    const before = asItStands ? row.raw : row.values.map(safe).join(delimiter);
    lines.push([before, ...names.map((name) => safe(inOneField(more[name])))].join(delimiter));
  }
  return lines.map((line) => `${line}\r\n`);
}

/** Lists have | between them, as `limbeck classify` writes them, and are JSON where that would be ambiguous. */
function inOneField(value) {
  if (!Array.isArray(value)) return String(value);
  if (value.some((one) => typeof one === "object" || String(one).includes("|"))) return JSON.stringify(value);
  return value.join("|");
}
