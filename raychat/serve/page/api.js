// The server's API: models, and answers as streams. An answer is a list of parts; its text is what the server sent.

const KEY = "raychat.key"; // in sessionStorage: the key is forgotten with the tab

// What the server, or the way to it, has to say against a request.
export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status; // of HTTP; 0 = no answer at all
    this.code = code;
  }
}

// Ask the user for the API key, then do once more what failed without it.
export function askForKey(dialog, again) {
  const input = dialog.querySelector("input");
  input.value = dialog.returnValue = "";
  dialog.onclose = () => {
    if (dialog.returnValue !== "ok") return;
    sessionStorage.setItem(KEY, input.value.trim());
    again();
  };
  dialog.showModal();
}

async function send(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Check that it runs, then try again.");
  });
  if (response.ok) return response;
  const error = (await response.json().catch(() => null))?.error;
  const message = error?.message ?? `the server answered ${response.status} ${response.statusText}`;
  throw new ApiError(hinted(message, response, error?.code), response.status, error?.code);
}

function hinted(message, response, code) {
  if (code === "context_length_exceeded") return `${message}. Shorten the question, or begin a new chat.`;
  const wait = response.headers.get("Retry-After");
  return wait ? `${message} (in ${wait} s)` : message;
}

// Return the cards of the served models, the default first.
export async function models() {
  return (await (await send("v1/models")).json()).data;
}

// Yield what each server-sent event says, as JSON, up to [DONE]. texts: the pieces of the stream, cut anywhere.
export async function* events(texts) {
  let rest = "";
  for await (const text of texts) {
    const found = (rest + text).split(/\r?\n\r?\n/);
    rest = found.pop();
    for (const event of found) {
      const data = event
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data); // a comment, which keeps a connection alive, has none
    }
  }
  throw lost();
}

const lost = () => new ApiError("The connection was lost in the middle of the answer.");

async function* texts(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const read = () =>
    reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : lost();
    });
  for (let piece = await read(); !piece.done; piece = await read()) yield piece.value;
}

// Return a new, empty answer of a model.
export function newAnswer(model) {
  return { model, parts: [], finish: null, promptTokens: 0, tokens: 0, seconds: 0, failure: null };
}

export const textOf = (answer) => answer.parts.map((part) => part.text).join("");

// Return the text that a person reads: the model's words without its tool calls.
export function spokenText(answer) {
  return answer.parts
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("");
}

// Fill an answer while the server streams it, and call `changed` each time. A failure becomes part of the answer; an
// answer that has neither `finish` nor `failure` was stopped.
export async function fill(answer, path, request, signal, changed) {
  const started = performance.now();
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  try {
    const response = await send(path, { method: "POST", body, signal });
    for await (const event of events(texts(response))) {
      take(answer, event);
      answer.seconds = (performance.now() - started) / 1000;
      changed();
    }
  } catch (error) {
    if (error.name !== "AbortError") answer.failure = { message: error.message, status: error.status ?? 0 };
  }
}

function take(answer, event) {
  if (event.error) throw new ApiError(event.error.message, event.error.code ?? 0);
  const choice = event.choices[0];
  const delta = choice?.delta ?? { content: choice?.text }; // chat, or a completion
  const last = answer.parts.at(-1);
  const type = delta.raychat_part ?? last?.type ?? "text";
  if (last?.type === type) last.text += delta.content ?? "";
  else if (delta.content || delta.raychat_part) answer.parts.push({ type, text: delta.content ?? "" });
  answer.finish = choice?.finish_reason ?? answer.finish;
  answer.promptTokens = event.usage?.prompt_tokens ?? answer.promptTokens;
  answer.tokens = event.usage?.completion_tokens ?? answer.tokens;
}
