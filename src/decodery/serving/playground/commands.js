// The request of the page as one would write it elsewhere.

/** A word as a shell of Unix reads it. */
export function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A value as Python writes it. */
export function pythonValue(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${pythonValue(one)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

const messagesOf = (request) => [{ role: "user", content: request.prompt }];
const argumentsOf = (pairs) => pairs.map(([name, value]) => `    ${name}=${pythonValue(value)},`).join("\n");

/** What OpenAI's client has arguments for; all else goes into extra_body. */
const OPENAI = ["temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias"];

/** request: model, prompt, chat (whether the prompt is what a user says), method (or null), settings. origin: of the server.
 * keyed: whether the server asks for a key. */
export function curl(request, origin, keyed) {
  const { max_new_tokens: most, ...settings } = request.settings;
  const body = {
    model: request.model,
    ...(request.chat ? { messages: messagesOf(request) } : { prompt: request.prompt }),
    ...(request.method ? { method: request.method } : {}),
    max_tokens: most,
    ...settings,
  };
  const path = request.chat ? "/v1/chat/completions" : "/v1/completions";
  const key = keyed ? ` \\\n  -H "Authorization: Bearer $DECODERY_API_KEY"` : "";
  return `curl ${shellWord(origin + path)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${shellWord(JSON.stringify(body))}`;
}

/** With OpenAI's client. */
export function client(request, origin, keyed) {
  const { max_new_tokens: most, ...settings } = request.settings;
  const own = Object.entries(settings).filter(([name]) => OPENAI.includes(name));
  const extra = Object.fromEntries(Object.entries(settings).filter(([name]) => !OPENAI.includes(name)));
  if (request.method) extra.method = request.method;
  const pairs = [
    ["model", request.model],
    request.chat ? ["messages", messagesOf(request)] : ["prompt", request.prompt],
    ["max_tokens", most],
    ...own,
    ...(Object.keys(extra).length ? [["extra_body", extra]] : []),
  ];
  const key = keyed ? 'os.environ["DECODERY_API_KEY"]' : '"none"';
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${pythonValue(`${origin}/v1`)}, api_key=${key})`,
    `reply = client.${request.chat ? "chat.completions" : "completions"}.create(`,
    argumentsOf(pairs),
    ")",
    `print(reply.choices[0].${request.chat ? "message.content" : "text"})`,
  ].join("\n");
}

/** With the library alone, without a server. */
export function python(request) {
  const pairs = [...(request.method ? [["method", request.method]] : []), ...Object.entries(request.settings)];
  const prompt = request.chat ? messagesOf(request) : request.prompt;
  return [
    "import decodery",
    "",
    `lm = decodery.load(${pythonValue(request.model)})`,
    "reply = lm.generate(",
    `    ${pythonValue(prompt)},`,
    argumentsOf(pairs),
    ")",
    "print(reply.text)",
  ].join("\n");
}

/** On the command line. option: setting -> its option there, or null. */
export function commandLine(request, option) {
  const words = ["decodery generate", `--model ${shellWord(request.model)}`];
  if (request.method) words.push(`--method ${shellWord(request.method)}`);
  const missing = [];
  for (const [name, value] of Object.entries(request.settings)) {
    const flag = option(name);
    const given = flag === null ? null : optionWords(name, flag, value);
    if (given === null) missing.push(name);
    else words.push(...given);
  }
  words.push(`${request.chat ? "--chat " : ""}-- ${shellWord(request.prompt)}`);
  const remark = missing.length ? `\n# has no option there: ${missing.join(", ")}` : "";
  return words.join(" \\\n  ") + remark;
}

function optionWords(name, flag, value) {
  if (value === true) return [flag];
  if (value === false) return [];
  if (name === "order") return [`${flag}=${shellWord(Array.isArray(value) ? value.join(",") : value)}`];
  if (Array.isArray(value)) {
    return value.some((one) => typeof one === "object") ? null : value.map((one) => `${flag}=${shellWord(String(one))}`);
  }
  if (typeof value === "object") return Object.entries(value).map(([id, one]) => `${flag}=${shellWord(`${id}=${one}`)}`);
  return [`${flag}=${shellWord(String(value))}`];
}
