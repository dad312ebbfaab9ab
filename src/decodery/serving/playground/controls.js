// One control for one value: made of what the registry says that the value may be.

import { el, freshId } from "./dom.js";

/** What a JSON schema of a setting asks for: the kind of control, and its range. */
export function kindOf(schema) {
  const options = (schema.anyOf ?? [schema]).filter((one) => one.type !== "null");
  if (options.length === 1) {
    const [only] = options;
    if (only.type === "number" || only.type === "integer") return { kind: only.type, ...rangeOf(only) };
    if (only.type === "boolean") return { kind: "boolean" };
    if (only.type === "string") return { kind: "text" };
    if (only.type === "array" && only.items?.type === "number") return { kind: "numbers" };
    return { kind: "json" };
  }
  if (options.some((one) => one.enum)) return { kind: "words", words: options.flatMap((one) => one.enum ?? []) };
  if (options.some((one) => one.type === "integer")) return { kind: "numbers" };
  return { kind: "lines" };
}

function rangeOf(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const open = schema.minimum === undefined && schema.exclusiveMinimum !== undefined;
  return { low, high: schema.maximum, open };
}

/** The same for a parameter of a method. */
export function kindOfParameter(parameter) {
  const types = parameter.type.split(" | ");
  if (parameter.choices.length) return { kind: "choice", words: parameter.choices };
  if (types.includes("bool")) return { kind: "choice", words: ["true", "false"], boolean: true };
  if (types.includes("str")) return { kind: "text", numbers: types.includes("int") || types.includes("float") };
  const kind = types.includes("float") ? "number" : "integer";
  return { kind, low: parameter.low ?? undefined, high: parameter.high ?? undefined, open: false };
}

/** A range in words. */
export function rangeWords({ low, high, open }) {
  if (Math.abs(low ?? 0) > 1e15) [low, high] = [undefined, undefined];
  if (low === undefined && high === undefined) return "";
  if (low === undefined) return `at most ${high}`;
  if (high === undefined) return open ? `above ${low}` : `at least ${low}`;
  return open ? `above ${low}, at most ${high}` : `${low} to ${high}`;
}

const HINTS = {
  lines: "one a line",
  numbers: "numbers, separated by commas",
  json: "JSON",
};

/** A name of several words, which may be broken between them. */
function broken(name) {
  return name.split("_").flatMap((word, at) => (at ? ["_", el("wbr"), word] : [word]));
}

function inputOf(id, kind, fallback, changed) {
  const said = fallback === null || fallback === "" ? "" : String(fallback);
  const event = kind.kind === "choice" ? "onchange" : "oninput";
  const common = { id, [event]: changed, "aria-describedby": `${id}-help`, autocomplete: "off", spellcheck: "false" };
  if (kind.kind === "boolean") return el("input", { ...common, type: "checkbox" });
  if (kind.kind === "choice") {
    const words = kind.words.map((word) => el("option", { value: word }, word));
    return el("select", common, el("option", { value: "" }, said ? `default (${said})` : "default"), ...words);
  }
  if (kind.kind === "lines" || kind.kind === "json") return el("textarea", { ...common, rows: 2 });
  if (kind.kind === "number" || kind.kind === "integer") {
    // Whole numbers may have more digits than JavaScript's: the text is what counts.
    return el("input", {
      ...common,
      type: "number",
      step: kind.kind === "integer" ? 1 : "any",
      min: Math.abs(kind.low ?? 0) > 1e15 ? undefined : kind.low,
      max: Math.abs(kind.high ?? 0) > 1e15 ? undefined : kind.high,
      placeholder: said,
    });
  }
  return el("input", { ...common, type: "text", placeholder: said });
}

/** A labelled control. name: of the value; fallback: what holds where nothing is given; changed: called on each change. */
export class Control {
  constructor({ name, label = name, help, kind, fallback = null, changed }) {
    this.name = name;
    this.kind = kind;
    this.id = freshId(`field-${name}`);
    this.input = inputOf(this.id, kind, fallback, () => {
      this.blame("");
      changed();
    });
    const hints = [rangeWords(kind), HINTS[kind.kind], kind.kind === "words" ? kind.words.join(", ") : ""];
    const more = hints.filter(Boolean).join("; ");
    this.fault = el("span", { class: "fault", id: `${this.id}-fault` });
    this.element = el(
      "div",
      { class: kind.kind === "boolean" ? "field check" : "field", "data-name": name },
      el("label", { for: this.id }, ...broken(label)),
      this.input,
      el("span", { class: "help", id: `${this.id}-help` }, more ? `${help} (${more})` : help),
      this.fault,
    );
  }

  show(visible) {
    this.element.hidden = !visible;
  }

  get given() {
    if (this.kind.kind === "boolean") return this.input.checked;
    return this.input.value.trim() !== "" || Boolean(this.input.validity?.badInput);
  }

  set(value) {
    if (this.kind.kind === "boolean") this.input.checked = value;
    else this.input.value = value;
  }

  /** Say what is wrong with the value; an empty text: nothing is. */
  blame(message) {
    this.fault.textContent = message;
    this.input.setAttribute("aria-invalid", message ? "true" : "false");
    this.input.setAttribute("aria-describedby", `${this.id}-help${message ? ` ${this.id}-fault` : ""}`);
  }

  /** The value as JSON has it. Throws an Error with a sentence where the text is none. */
  get value() {
    if (this.kind.kind === "boolean") return this.input.checked;
    if (this.input.validity?.badInput) throw this.wrong("a number");
    const text = this.input.value;
    switch (this.kind.kind) {
      case "number":
        return this.number(text);
      case "integer":
        if (!/^[+-]?\d+$/.test(text.trim())) throw this.wrong("a whole number");
        if (!Number.isSafeInteger(Number(text))) throw this.wrong("a whole number of at most 15 digits");
        return Number(text);
      case "choice":
        return this.kind.boolean ? text === "true" : text;
      case "numbers":
        return text.split(",").map((one) => this.number(one));
      case "lines":
        return text.trim().startsWith("[") ? this.json(text) : text.split("\n").filter(Boolean);
      case "json":
        return this.json(text);
      case "words": {
        const words = text.split(",").map((word) => word.trim());
        return words.length === 1 && this.kind.words.includes(words[0]) ? words[0] : words;
      }
      default: {
        const plain = this.kind.numbers && /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text.trim());
        return plain ? Number(text) : text.trim();
      }
    }
  }

  number(text) {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value)) throw this.wrong("a number");
    return value;
  }

  json(text) {
    try {
      return JSON.parse(text);
    } catch {
      throw this.wrong("JSON");
    }
  }

  wrong(wanted) {
    const message = `${this.name} must be ${wanted}.`;
    this.blame(message);
    return new Error(message);
  }
}
