// Talks to `pyskip serve`: JSON, server-sent events, errors in one line, the API key.

const KEY = "pyskip-api-key"; // in sessionStorage

/** What went wrong, in one line for people; code: the API's word for it, if there is one. */
export class ApiError extends Error {
  constructor(message, code) {
    super(String(message).replace(/\s+/g, " ").trim());
    this.code = code;
  }
}

/** What a refusal says, {"error": {"message", "code"}}, or what can be told without. */
async function refusal(response) {
  let said;
  try {
    said = (await response.json()).error;
  } catch {
    said = null;
  }
  return new ApiError(said?.message || `the server answers ${response.status}`, said?.code);
}

/**
 * The response to a GET, or to a POST if there is a body. On a 401 askKey(hadKey) gives a key, or null if
 * there is none to try. Addresses are relative to the page: it may lie under another path behind a proxy.
 */
async function request(path, { body, signal, askKey }) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, {
        method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal,
        cache: "no-store", credentials: "same-origin", redirect: "error",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("the server does not answer: is pyskip serve still running?");
    }
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status !== 401) throw error;
    const given = await askKey(key !== null);
    if (given === null) throw error;
    sessionStorage.setItem(KEY, given);
  }
}

/** The models: [{id, n_layer, skippable, skip, profile}]. */
export async function models(askKey) {
  const response = await request("pyskip/models", { askKey });
  try {
    return (await response.json()).data;
  } catch {
    throw new ApiError("found no list of models at pyskip/models, expected JSON: is this pyskip serve?");
  }
}

/** The chunks of a streamed chat completion, as the API sends them. Throws AbortError when the signal is set. */
export async function* chat(body, signal, askKey) {
  const stream = {
    stream: true, stream_options: { include_usage: true }, skip_trace: true,
    reasoning_format: "none", // tokens and text are told together
  };
  const response = await request("v1/chat/completions", { body: { ...body, ...stream }, signal, askKey });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => {
        if (signal.aborted) throw new DOMException("stopped", "AbortError");
        throw new ApiError("the answer broke off: the connection to the server was lost");
      });
      if (done) throw new ApiError("the answer broke off: the server ended it early");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message ?? "the answer broke off", chunk.error.code);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the server hears that nobody reads on
  }
}
