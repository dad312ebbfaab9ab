// The page: puts the parts together, runs requests, and tells what became of them.

import { Refused, follow, get, post, useKey } from "./api.js";
import { client, commandLine, curl, python } from "./commands.js";
import { compared } from "./compare.js";
import { byId, el } from "./dom.js";
import { MethodChoice } from "./methods.js";
import { Panel } from "./panel.js";
import { SettingsForm } from "./settings.js";
import { TokenCard } from "./tokens.js";

const page = {
  models: [],
  methods: [],
  settings: null,
  running: null,
  keyed: false,
  /** Whether the prompt was made a text to continue because the model knows no chats. */
  unchatted: false,
};
const card = new TokenCard(byId("voice"));
const choices = [new MethodChoice("Method", changed), new MethodChoice("Second method", changed)];
const panels = [new Panel("First", card), new Panel("Second", card)];

// What is asked

const chosenModel = () => page.models.find((model) => model.id === byId("model").value);
const comparing = () => byId("compare").checked;
const chatting = () => byId("chat").checked;

/** The request of the form, with the method of one of the choices. Throws an Error where a control has no value. */
function requestOf(choice) {
  return {
    model: byId("model").value,
    prompt: byId("prompt").value,
    chat: chatting(),
    method: choice.method,
    settings: page.settings.values,
  };
}

/** The body for /v1/decodery/events. */
function bodyOf(request) {
  const alternatives = byId("alternatives").value;
  return {
    model: request.model,
    prompt: request.chat ? [{ role: "user", content: request.prompt }] : request.prompt,
    ...(request.method ? { method: request.method } : {}),
    ...(alternatives === "" ? {} : { logprobs: Number(alternatives) }),
    ...request.settings,
  };
}

// Running

async function run() {
  if (page.running) return;
  fail("");
  const used = comparing() ? [0, 1] : [0];
  let bodies;
  try {
    bodies = used.map((at) => bodyOf(requestOf(choices[at])));
  } catch (error) {
    fail(error.message);
    return;
  }
  if (used.length > 1) {
    // Both draw alike, and neither knows what methods have remembered of the other's text.
    const seed = bodies[0].seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
    bodies.forEach((body, at) => Object.assign(body, { seed, session: body.session ?? `playground-${seed}-${Date.now()}-${at}` }));
  }
  page.running = new AbortController();
  busy(true);
  for (const panel of panels) panel.clear();
  byId("verdict").replaceChildren();
  byId("results").classList.toggle("two", used.length > 1);
  panels[1].element.hidden = used.length === 1;
  byId("empty").hidden = true;
  panels[0].element.hidden = false;
  if (byId("results").getBoundingClientRect().top > window.innerHeight / 2) byId("results").scrollIntoView();
  try {
    for (const at of used) {
      panels[at].say(chosenModel()?.decodery.loaded ? "waiting for the server" : "the model is being loaded");
      if (used.length > 1 && at === 0) panels[1].say("runs after the first, so that neither slows the other down");
      status(`Running ${at === 0 ? "the first" : "the second"} method.`);
      await follow(bodies[at], page.running.signal, (event) => panels[at].take(event));
    }
    if (used.length > 1) byId("verdict").replaceChildren(...compared(...panels));
    status(used.length > 1 ? "Done: both methods." : `Done: ${panels[0].tokens.length} tokens.`);
  } catch (error) {
    ended(error, used);
  } finally {
    page.running = null;
    busy(false);
  }
  if (!chosenModel()?.decodery.loaded) await refreshModels();
}

function ended(error, used) {
  const stopped = error.name === "AbortError";
  for (const at of used) if (!panels[at].finished) panels[at].say(stopped ? "stopped" : "no text, see above");
  if (stopped) {
    status("Stopped.");
    return;
  }
  status("");
  if (!(error instanceof Refused && error.param && page.settings.blame(error.param, error.message))) fail(error.message);
  if (error.status === 401) askForKey();
}

function busy(is) {
  byId("run").disabled = is;
  byId("stop").disabled = !is;
  byId("results").setAttribute("aria-busy", is);
}

function fail(message) {
  byId("failure").textContent = message;
}

function status(message) {
  byId("status").textContent = message;
}

// What can be chosen

async function refreshModels() {
  const before = byId("model").value;
  page.models = (await get("/v1/models")).data;
  const named = page.models.map((model) =>
    el("option", { value: model.id }, model.decodery.loaded ? model.id : `${model.id} (not loaded)`),
  );
  byId("model").replaceChildren(...named);
  if (page.models.some((model) => model.id === before)) byId("model").value = before;
  await modelChanged();
}

async function modelChanged() {
  const model = chosenModel();
  const { loaded, methods = [], kind, path, chat, default_method: usual } = model.decodery;
  byId("load").hidden = loaded;
  byId("model-told").textContent = loaded
    ? `${kind}; runs ${path}; ${model.max_model_len} tokens of context`
    : "Its methods are known when it is loaded. To run it loads it too.";
  const without = loaded && !chat;
  if (without && byId("chat").checked) page.unchatted = byId("continue").checked = true;
  else if (!without && page.unchatted) [page.unchatted, byId("chat").checked] = [false, true];
  byId("chat").disabled = without;
  byId("chat-told").textContent = without ? "This model has no template for chats, so it continues the text." : "";
  const infos = page.methods.filter((info) => methods.includes(info.name));
  const plain = methods.includes("autoregressive") ? "autoregressive" : usual;
  await Promise.all([choices[0].offer(infos, usual), choices[1].offer(infos, plain)]);
  changed();
}

async function load() {
  byId("load").disabled = true;
  status(`Loading ${byId("model").value}.`);
  try {
    await post("/tokenize", { model: byId("model").value, prompt: "" });
    await refreshModels();
    status(`${byId("model").value} is loaded.`);
  } catch (error) {
    status("");
    fail(error.message);
  } finally {
    byId("load").disabled = false;
  }
}

/** Something in the form is another: show what acts now, and write the commands anew. */
function changed() {
  if (!page.settings) return;
  choices[1].element.hidden = !comparing();
  const used = comparing() ? choices : [choices[0]];
  page.settings.refresh(Object.assign({}, ...used.map((choice) => choice.refuses)));
  write();
}

// The same elsewhere

const WRITERS = {
  curl: (request) => curl(request, location.origin, page.keyed),
  client: (request) => client(request, location.origin, page.keyed),
  python: (request) => python(request),
  shell: (request) => commandLine(request, (name) => page.settings.option(name)),
};

function write() {
  const way = document.querySelector("input[name=way]:checked").value;
  try {
    byId("command").value = WRITERS[way](requestOf(choices[0]));
  } catch (error) {
    byId("command").value = `# ${error.message}`;
  }
}

async function copy() {
  const area = byId("command");
  try {
    await navigator.clipboard.writeText(area.value);
  } catch {
    // Browsers give the clipboard only to pages that came encrypted or from this machine.
    area.select();
    document.execCommand("copy");
  }
  status("Copied.");
}

// The beginning

function askForKey() {
  page.keyed = true;
  byId("key-box").hidden = false;
  byId("key").focus();
}

async function start() {
  try {
    const [methods, settings] = await Promise.all([get("/v1/decodery/methods"), get("/v1/decodery/settings")]);
    page.methods = methods.data;
    if (!page.settings) page.settings = new SettingsForm(settings.data, byId("first-settings"), byId("other-settings"), changed);
    await refreshModels();
    busy(false);
    fail("");
  } catch (error) {
    fail(error.message);
    if (error.status === 401) askForKey();
  }
}

function wire() {
  byId("methods").append(...choices.map((choice) => choice.element));
  byId("panels").append(...panels.map((panel) => panel.element));
  for (const panel of panels) panel.element.hidden = true;
  document.body.append(card.element);
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  byId("stop").addEventListener("click", () => page.running?.abort());
  byId("model").addEventListener("change", modelChanged);
  byId("load").addEventListener("click", load);
  byId("compare").addEventListener("change", changed);
  for (const id of ["prompt", "chat", "continue"]) byId(id).addEventListener("input", changed);
  for (const way of document.querySelectorAll("input[name=way]")) way.addEventListener("change", write);
  byId("copy").addEventListener("click", copy);
  byId("key-box").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value);
    start();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") card.hide();
  });
}

wire();
start();
