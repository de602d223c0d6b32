// The page's wiring: loads what is served, asks about the text, shows answers and what went wrong.

import { ApiError, classify, explain, readEnds, readKey, useKey } from "./api.js";
import { byId, el } from "./dom.js";
import { FilePart } from "./file.js";
import { Picker } from "./picker.js";
import { card, compared, inWords } from "./results.js";

const RETRY_MS = 2000;

const picker = new Picker();
const filePart = new FilePart(picker, plainly);
let running = 0; // the latest question; answers to earlier ones are dropped

byId("key").value = readKey();
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  load();
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  answer(false);
});
byId("explain").addEventListener("click", () => answer(true));
for (const id of ["text", "pair"]) {
  byId(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
}
picker.changed = (model) => filePart.modelChanged(model);
load();

async function load() {
  try {
    const found = await picker.load();
    trouble(found ? null : new ApiError("No model is in service, or none that the key allows."));
    byId("key-box").open &&= !found;
  } catch (error) {
    trouble(error);
    if (error.status === 401) {
      byId("key-box").open = true;
      byId("key").focus();
    } else if (error.status === 503) setTimeout(load, Math.max(RETRY_MS, 1000 * Math.min(error.retryAfter, 5)));
  }
}

/** Show what is wrong with the page as a whole, or nothing. */
function trouble(error) {
  const box = byId("trouble");
  box.hidden = !error;
  box.replaceChildren();
  if (!error) return;
  box.append(el("span", {}, plainly(error)));
  if (error.code === "unreachable") box.append(" ", el("button", { type: "button", onclick: load }, "Try again"));
}

/** Say an error for people: what it means here, and the service's own words. */
function plainly(error) {
  const meaning = {
    unauthorized: "The service wants an API key: put one in above.",
    forbidden: "The API key does not allow this.",
    rate_limited: `The key's quota is used up for ${error.retryAfter} s.`,
    queue_full: "The service is busy: try again in a moment.",
    not_ready: "The service is not ready yet; this page asks again.",
    draining: "The service is shutting down.",
    not_found: "This service has no such route.",
  }[error.code === "rate_limited" || error.status !== 429 ? error.code : "queue_full"];
  return meaning ? `${meaning} (${error.message})` : error.message;
}

async function answer(explained) {
  const mine = ++running;
  const model = picker.model;
  if (!model) return load();
  const input = { text: byId("text").value, pair: model.text_pair ? byId("pair").value : null };
  busy(true, explained ? "Asking, word by word …" : "Asking …");
  const answers = [];
  for (const one of picker.models) {
    answers.push(await answerOf(one, input, explained)); // one after the other, so that neither slows the other
    if (mine !== running) return;
  }
  show(answers);
  busy(false);
}

async function answerOf(model, input, explained) {
  const given = input.pair === null ? input.text : { text: input.text, text_pair: input.pair };
  try {
    const { body, timing, roundTrip } = await classify(model, [given], { timed: picker.timingHeader });
    const [result] = body.results;
    const found = { model, input, result, timing, roundTrip, ends: null };
    if (result.truncated) found.ends = await readEnds(model, input.text, input.pair).catch(() => null);
    if (explained) await addExplanation(found, given);
    return found;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return { model, input, error: new Error(plainly(error)) };
  }
}

async function addExplanation(found, given) {
  const label = byId("of").value;
  try {
    found.explained = (await explain(found.model, given, found.model.labels.includes(label) ? label : "")).body;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    found.notExplained = new Error(plainly(error));
  }
}

function show(answers) {
  byId("results").replaceChildren(...answers.map(card));
  byId("results").classList.toggle("two", answers.length > 1);
  const agreement = answers.length > 1 ? compared(answers) : null;
  const told = answers.map(inWords).join("; ");
  byId("said").replaceChildren(...(agreement ? [el("b", {}, agreement), ` ${told}`] : [el("b", {}, told)]));
}

function busy(is, told = "") {
  byId("results-section").hidden = false;
  byId("results").setAttribute("aria-busy", String(is));
  byId("classify").disabled = byId("explain").disabled = is;
  if (is) byId("said").textContent = told;
}
