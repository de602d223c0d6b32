// Which model, which version, what it is compared with, and the bundle's own examples.

import { ask, tags } from "./api.js";
import { byId, fill, plural } from "./dom.js";

const NOTHING = "";

export class Picker {
  #served = [];

  constructor() {
    byId("model").addEventListener("change", () => this.#chosen(true));
    byId("version").addEventListener("change", () => this.#chosen(false));
    byId("example").addEventListener("change", () => this.#takeExample());
    this.changed = () => {};
  }

  /** Ask what is served; raises ApiError. */
  async load() {
    const { body } = await ask("playground/models");
    this.#served = body.models;
    this.limits = { inputs: body.max_inputs, bytes: body.max_body_bytes };
    this.timingHeader = body.timing_header;
    const names = [...new Set(this.#served.map(({ name }) => name))];
    fill(byId("model"), names.map((name) => [name, name]), byId("model").value || body.default_model);
    this.#chosen(true);
    return this.#served.length;
  }

  get model() {
    const [name, version] = [byId("model").value, byId("version").value];
    return this.#served.find((one) => one.name === name && one.version === version);
  }

  get other() {
    const chosen = byId("other").value;
    return chosen === NOTHING ? null : this.#served[Number(chosen)];
  }

  get models() {
    return [this.model, this.other].filter(Boolean);
  }

  #chosen(anotherModel) {
    if (!this.#served.length) return;
    if (anotherModel) {
      const versions = this.#served.filter(({ name }) => name === byId("model").value).map(({ version }) => version);
      fill(byId("version"), versions.map((version) => [version, version]), versions[0]);
    }
    const model = this.model;
    // what reads the same kind of input, and gives the same kind of answer
    const others = this.#served
      .map((one, index) => [one, String(index)])
      .filter(([one]) => one !== model && one.text_pair === model.text_pair && tags(one) === tags(model));
    fill(byId("other"), [[NOTHING, "nothing"], ...others.map(([one, index]) => [index, `${one.name} ${one.version}`])]);
    fill(byId("of"), [["", "the best label"], ...model.labels.map((label) => [label, label])]);
    const examples = model.examples.map(({ text, text_pair: pair }, index) => [String(index), short(pair ? `${text} | ${pair}` : text)]);
    fill(byId("example"), [[NOTHING, examples.length ? "choose one" : "none in the bundle"], ...examples], NOTHING);
    byId("about").textContent =
      `${model.task} · ${plural(model.labels.length, tags(model) ? "tag" : "label")} · reads ${model.max_length} tokens · ` +
      `variant ${model.variant}`;
    byId("pair-box").hidden = !model.text_pair;
    byId("explain").hidden = byId("of-box").hidden = tags(model);
    this.changed(model);
  }

  #takeExample() {
    const example = this.model.examples[Number(byId("example").value)];
    if (byId("example").value === NOTHING || !example) return;
    byId("text").value = example.text;
    byId("pair").value = example.text_pair ?? "";
  }
}

const short = (text) => ([...text].length > 70 ? `${[...text].slice(0, 70).join("")}…` : text);
