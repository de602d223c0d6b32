// Classifies many rows in batches, whatever goes wrong with some of them.

import { ApiError, classify } from "./api.js";

const BATCH = 32; // inputs in one request, where the service takes so many
const ROOM = 0.8; // of the body's bound: the rest is for what is not texts
const TRIES = 8;
const LONGEST_WAIT_S = 60;

const PASSING = new Set([408, 429, 502, 503, 504]); // of the service or a proxy before it; a batch that was not run
const FATAL = new Set([0, 401, 403, 404]);

/**
 * Classify `items` ({row, input}). Tells `progress(rows)`, `done(row, result)`, `bad(row, problem)` and `waiting(s)`.
 * Raises ApiError when going on makes no sense, and AbortError when `signal` says stop; what was told stays.
 */
export async function classifyAll(model, items, limits, signal, tell) {
  for (const batch of batches(items, Math.min(BATCH, limits.inputs), ROOM * limits.bytes)) {
    await classifyBatch(model, batch, signal, tell);
    tell.progress(batch.length);
  }
}

function* batches(items, most, bytes) {
  const encoder = new TextEncoder();
  let [batch, size] = [[], 0];
  for (const item of items) {
    const length = encoder.encode(JSON.stringify(item.input)).length + 1;
    if (batch.length && (batch.length === most || size + length > bytes)) {
      yield batch;
      [batch, size] = [[], 0];
    }
    batch.push(item);
    size += length;
  }
  if (batch.length) yield batch;
}

async function classifyBatch(model, batch, signal, tell) {
  let results;
  try {
    results = await patiently(model, batch, signal, tell);
  } catch (error) {
    if (!(error instanceof ApiError) || FATAL.has(error.status) || PASSING.has(error.status)) throw error;
    if (batch.length === 1) {
      tell.bad(batch[0].row, error.message);
      return;
    }
    for (const part of apart(batch, error)) await classifyBatch(model, part, signal, tell);
    return;
  }
  results.forEach((result, index) => tell.done(batch[index].row, result));
}

/** Split a batch that was refused: the input that the error names from the others, or in halves. */
function apart(batch, error) {
  const named = /^inputs\[(\d+)\]/.exec(error.field ?? "");
  const index = named ? Number(named[1]) : -1;
  if (index >= 0 && index < batch.length) {
    return [[batch[index]], batch.filter((_, other) => other !== index)];
  }
  const half = Math.ceil(batch.length / 2);
  return [batch.slice(0, half), batch.slice(half)];
}

async function patiently(model, batch, signal, tell) {
  for (let tried = 1; ; tried += 1) {
    try {
      const { body } = await classify(model, batch.map(({ input }) => input), { signal, bulk: true });
      return body.results;
    } catch (error) {
      if (!(error instanceof ApiError) || !PASSING.has(error.status) || tried === TRIES) throw error;
      const seconds = Math.min(LONGEST_WAIT_S, error.retryAfter || 1);
      tell.waiting(seconds);
      await sleep(seconds, signal);
    }
  }
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
