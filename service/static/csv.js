// Fields with a delimiter between them, as RFC 4180 has them: quotes, and line ends and quotes within quotes.

/**
 * Parse a whole file. Records are {line, raw, fields}, or {line, problem} for what cannot be read; `line` counts from
 * 1 and is the record's first, `raw` the record as it stands without its line end. Blank lines are passed over. A
 * record whose quotes are wrong costs one line: reading goes on at the next.
 */
export function parseDelimited(text, delimiter) {
  const records = [];
  let [at, line] = [0, 1];
  while (at < text.length) {
    const found = readRecord(text, at, delimiter);
    const end = found.problem ? endOfLine(text, at) : found.end;
    const raw = text.slice(at, end);
    if (found.problem) records.push({ line, problem: found.problem });
    else if (raw !== "") records.push({ line, raw, fields: found.fields });
    line += countLineEnds(raw) + 1;
    at = end + (text.startsWith("\r\n", end) ? 2 : 1);
  }
  return records;
}

function readRecord(text, start, delimiter) {
  const fields = [];
  let at = start;
  for (;;) {
    let field = "";
    if (text[at] === '"') {
      for (;;) {
        const close = text.indexOf('"', at + 1);
        if (close < 0) return { problem: "a quote is never closed" };
        field += text.slice(at + 1, close);
        at = close + 1;
        if (text[at] !== '"') break;
        field += '"'; // doubled: one quote
      }
      if (!endsField(text[at], delimiter)) return { problem: "there is text behind a closing quote" };
    } else {
      const from = at;
      while (!endsField(text[at], delimiter)) at += 1;
      field = text.slice(from, at);
    }
    fields.push(field);
    if (text[at] !== delimiter) return { fields, end: at };
    at += 1;
  }
}

const endsField = (character, delimiter) =>
  character === undefined || character === delimiter || character === "\n" || character === "\r";

function endOfLine(text, at) {
  const found = text.slice(at).search(/[\r\n]/);
  return found < 0 ? text.length : at + found;
}

const countLineEnds = (raw) => (raw.match(/\r\n|\r|\n/g) ?? []).length;

/** A field as it is written. */
export const quoted = (field, delimiter) =>
  field.includes('"') || field.includes(delimiter) || /[\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field;

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** Whether a spreadsheet would take a field for a formula, and perhaps run it. Numbers with a sign are none. */
export const isFormula = (field) => /^[=+\-@\t\r]/.test(field) && !NUMBER.test(field);
