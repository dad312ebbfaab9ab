// What the page asks of the server: lists, and streams of events.

let key = "";

/** Send this API key from now on. It is kept as long as the page is open, and nowhere else. */
export function useKey(given) {
  key = given.trim();
}

/** What the server refused. param: the field that is to blame, where it is one. */
export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered with ${status}.`);
    this.status = status;
    this.param = error?.param ?? null;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Refused(answer.status, body?.error);
  }
  return answer;
}

function posted(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

export async function get(path) {
  return (await ask(path)).json();
}

export async function post(path, body, signal) {
  return (await ask(path, posted(body, signal))).json();
}

/** Decode a request, and hand over each event as it comes. Ends with the stream; throws what the server says of a failure. */
export async function follow(body, signal, take) {
  const answer = await ask("/v1/decodery/events", posted(body, signal));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The server ended the stream before the text was over.");
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const line = frame.split("\n").find((one) => one.startsWith("data: "));
      if (line === undefined) continue;
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.type === "error") throw new Refused(200, event.error);
      take(event);
    }
  }
}
