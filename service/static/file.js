// The part of the page that takes a file, shows how far it is, and hands the results back.

import { ApiError } from "./api.js";
import { classifyAll } from "./batch.js";
import { byId, el, fill, plural } from "./dom.js";
import { added, countFormulas, readFile, textOf, writeFile } from "./rows.js";

const MOST_BYTES = 50e6; // more belongs to `limbeck classify`, which keeps no file in memory
const MOST_ROWS = 500_000; // some hundred bytes of memory each
const MOST_LISTED = 200; // bad rows

export class FilePart {
  #picker;
  #plainly;
  #table = null;
  #bad = [];
  #opening = null; // the file that was chosen last
  #stopping = null;
  #address = null; // of the download

  constructor(picker, plainly) {
    [this.#picker, this.#plainly] = [picker, plainly];
    byId("file").addEventListener("click", () => (byId("file").value = "")); // the same file, mended, may be chosen again
    byId("file").addEventListener("change", () => this.#open(byId("file").files[0]));
    byId("file-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#run();
    });
    byId("stop").addEventListener("click", () => this.#stopping?.abort());
    this.#takeDrops(byId("drop"));
  }

  modelChanged(model) {
    byId("pair-column-box").hidden = !model.text_pair;
  }

  #takeDrops(zone) {
    const over = (is) => zone.classList.toggle("over", is);
    for (const name of ["dragover", "drop"]) {
      // a file beside the zone is not navigated to; text may still be dragged into a box
      window.addEventListener(name, (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
    }
    zone.addEventListener("dragover", () => over(true));
    zone.addEventListener("dragleave", () => over(false));
    zone.addEventListener("drop", (event) => {
      over(false);
      this.#open(event.dataTransfer.files[0]);
    });
  }

  async #open(file) {
    if (!file || this.#stopping) return;
    this.#opening = file;
    this.#clear();
    byId("file-form").hidden = true;
    try {
      if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than 50 MB: use limbeck classify, which reads files of any size.`);
      const table = await readFile(file);
      if (this.#opening !== file || this.#stopping) return;
      if (table.rows.length > MOST_ROWS) throw new Error(`${file.name} has more than ${MOST_ROWS.toLocaleString("en")} rows: use limbeck classify, which reads files of any size.`);
      this.#table = table;
      const options = table.columns.map((name, index) => [String(index), name || `column ${index + 1}`]);
      fill(byId("column"), options, String(Math.max(0, table.columns.indexOf("text"))));
      fill(byId("pair-column"), options, String(Math.max(0, table.columns.indexOf("text_pair"))));
      byId("file-about").textContent = `${file.name}: ${plural(table.rows.length, "row")}${table.bad.length ? `, and ${table.bad.length} that cannot be read` : ""}.`;
      const formulas = countFormulas(table);
      byId("formulas").hidden = !formulas;
      byId("guard-label").textContent =
        `${plural(formulas, "row has", "rows have")} a field that a spreadsheet would take for a formula: write an apostrophe before it`;
      byId("file-form").hidden = false;
      byId("start").disabled = false;
    } catch (error) {
      if (this.#opening === file) this.#say(error.message, true);
    }
  }

  #clear() {
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = null;
    this.#bad = [];
    for (const id of ["progress-box", "download-box", "bad-box"]) byId(id).hidden = true;
    this.#say("");
  }

  async #run() {
    const [table, model] = [this.#table, this.#picker.model];
    if (!table || !model || this.#stopping) return;
    this.#clear();
    this.#bad = [...table.bad];
    const done = new Map();
    const items = this.#items(table, model);
    let passed = 0;
    const tell = {
      progress: (rows) => this.#progress((passed += rows), items.length),
      done: (row, result) => done.set(row, added(model, result)),
      bad: (row, problem) => this.#bad.push({ line: row.line, problem }),
      waiting: (seconds) => this.#say(`The service is busy; going on in ${seconds} s.`),
    };
    this.#working(new AbortController());
    this.#progress(0, items.length);
    let ended = "";
    try {
      await classifyAll(model, items, this.#picker.limits, this.#stopping.signal, tell);
    } catch (error) {
      if (error.name === "AbortError") ended = "Stopped.";
      else if (error instanceof ApiError) ended = `Ended early. ${this.#plainly(error)}`;
      else throw error;
    } finally {
      this.#working(null);
    }
    this.#finish(table, done, ended);
  }

  #items(table, model) {
    const columns = [byId("column"), ...(model.text_pair ? [byId("pair-column")] : [])].map(({ value }) => Number(value));
    const items = [];
    for (const row of table.rows) {
      const texts = columns.map((column) => textOf(table, row, column));
      const missing = texts.indexOf(undefined);
      if (missing >= 0) this.#bad.push({ line: row.line, problem: `no text in ${table.columns[columns[missing]]}` });
      else items.push({ row, input: model.text_pair ? { text: texts[0], text_pair: texts[1] } : texts[0] });
    }
    return items;
  }

  #working(stopping) {
    this.#stopping = stopping;
    byId("start").disabled = byId("file").disabled = stopping !== null;
    byId("stop").hidden = stopping === null;
  }

  #progress(rows, all) {
    byId("progress-box").hidden = false;
    byId("progress").value = all ? rows / all : 1;
    byId("progress").textContent = `${rows} of ${all}`;
    this.#say(`${rows.toLocaleString("en")} of ${plural(all, "row")} sent.`);
  }

  #finish(table, done, ended) {
    const rows = table.rows.filter((row) => done.has(row)).map((row) => ({ row, more: done.get(row) }));
    const leftOut = this.#bad.length ? `, ${this.#bad.length} left out` : "";
    this.#say(`${ended} ${plural(rows.length, "row")} classified${leftOut}.`.trim(), Boolean(ended));
    this.#listBad();
    if (!rows.length) return;
    const guard = !byId("formulas").hidden && byId("guard").checked;
    const { name, blob } = writeFile(table, rows, Object.keys(rows[0].more), guard);
    this.#address = URL.createObjectURL(blob);
    byId("download").href = this.#address;
    byId("download").download = name;
    byId("download").textContent = `Download ${name}`;
    byId("download-box").hidden = false;
  }

  #listBad() {
    const bad = this.#bad.sort((one, other) => one.line - other.line);
    byId("bad-box").hidden = !bad.length;
    byId("bad-box").open = bad.length > 0 && bad.length <= 10;
    byId("bad-count").textContent = `${plural(bad.length, "row")} left out`;
    const more = bad.length > MOST_LISTED ? [el("li", {}, `and ${bad.length - MOST_LISTED} more`)] : [];
    byId("bad").replaceChildren(...bad.slice(0, MOST_LISTED).map(({ line, problem }) => el("li", {}, `Line ${line}: ${problem}`)), ...more);
  }

  #say(text, wrong = false) {
    byId("file-said").textContent = text;
    byId("file-said").classList.toggle("wrong", wrong);
  }
}
