// Asks the service. Paths are relative to the page, so that it works behind a proxy's prefix.

const KEY = "limbeck-key";

/** What went wrong, in the service's words. `code` and `field` are its own; `retryAfter` is in seconds. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", field = "", retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, field, retryAfter });
  }
}

// Kept for this tab, until it is closed; never in an address.
export const readKey = () => sessionStorage.getItem(KEY) ?? "";
export function useKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Ask, and return {body, timing, roundTrip}; times are milliseconds. Raises ApiError. */
export async function ask(path, { json, headers = {}, signal } = {}) {
  const key = readKey();
  const options = { method: json === undefined ? "GET" : "POST", headers: { ...headers }, signal, cache: "no-store" };
  if (key) options.headers.Authorization = `Bearer ${key}`;
  if (json !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(json);
  }
  const begun = performance.now();
  let response, text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.name === "TypeError" && key && /[^\x20-\x7e]/.test(key)) {
      throw new ApiError("The API key has characters that no key has.", { code: "unauthorized", status: 401 });
    }
    throw new ApiError("The service cannot be reached. Is it still running?", { code: "unreachable" });
  }
  const roundTrip = performance.now() - begun;
  const body = parsed(text);
  if (!response.ok) throw failure(response, body);
  if (body === undefined) throw new ApiError(`The answer to ${path} is no JSON: ${text.slice(0, 100)}`);
  return { body, timing: timing(response.headers.get("Server-Timing")), roundTrip };
}

function failure(response, body) {
  const told = body?.error;
  return new ApiError(told?.message ?? `The service answered ${response.status} ${response.statusText}`, {
    status: response.status,
    code: told?.code,
    field: told?.field,
    retryAfter: Number(response.headers.get("Retry-After")) || 0,
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function timing(header) {
  if (!header) return null;
  const parts = header.split(",").map((part) => part.trim().split(";dur="));
  return Object.fromEntries(parts.map(([name, duration]) => [name, Number(duration)]));
}

const path = (model, action) =>
  `v1/models/${encodeURIComponent(model.name)}/versions/${encodeURIComponent(model.version)}/${action}`;

export const tags = (model) => model.task === "token-classification";

/** Ask for the labels of inputs, or for their entities from a model that tags. */
export function classify(model, inputs, { timed = "", signal, bulk = false } = {}) {
  const json = bulk ? { inputs, priority: "bulk" } : { inputs };
  const headers = timed ? { [timed]: "1" } : {};
  return ask(path(model, tags(model) ? "tag" : "classify"), { json, headers, signal });
}

export const explain = (model, input, label) =>
  ask(path(model, "explain"), { json: label ? { inputs: input, label } : { inputs: input } });

/** How far the model reads each text, in code points. */
export async function readEnds(model, text, pair) {
  const json = { model: model.name, version: model.version, text, ...(pair === null ? {} : { text_pair: pair }) };
  return (await ask("playground/cut", { json })).body.ends;
}
