// The settings of a request: those that are always there, and all others of the registry, shown where they act.

import { Control, kindOf } from "./controls.js";

const FIRST = ["max_new_tokens", "temperature", "seed", "stop"];
const START = { max_new_tokens: "64", temperature: "0", seed: "1" };
/** Said by other controls, or not told of by this page. */
const ELSEWHERE = ["logprobs", "n"];

export class SettingsForm {
  /** first, others: elements that the controls are put into. changed: called on each change. */
  constructor(told, first, others, changed) {
    this.told = new Map(told.map((one) => [one.name, one]));
    this.controls = new Map();
    this.refused = {};
    for (const one of [...told].sort((a, b) => place(a) - place(b))) {
      if (ELSEWHERE.includes(one.name)) continue;
      const control = new Control({
        name: one.name,
        help: one.help,
        kind: kindOf(one.schema),
        fallback: Array.isArray(one.default) ? null : typeof one.default === "object" ? null : one.default,
        changed: () => {
          this.refresh();
          changed();
        },
      });
      if (one.name in START) control.set(START[one.name]);
      this.controls.set(one.name, control);
      (FIRST.includes(one.name) ? first : others).append(control.element);
    }
    this.refresh();
  }

  /** Show what acts. refused: settings that a chosen method does not run with, and why. */
  refresh(refused = this.refused) {
    this.refused = refused;
    for (const [name, control] of this.controls) control.show(this.acts(name));
  }

  acts(name) {
    const one = this.told.get(name);
    if (name in this.refused) return false;
    if (one.greedy_only && this.temperature !== 0) return false;
    return one.needs === null || (this.acts(one.needs) && this.controls.get(one.needs).given);
  }

  get temperature() {
    const control = this.controls.get("temperature");
    if ("temperature" in this.refused || !control) return 0;
    return control.given ? Number(control.input.value) : this.told.get("temperature").default;
  }

  /** The settings that are given, by name. Throws an Error with a sentence. */
  get values() {
    const values = {};
    for (const [name, control] of this.controls) {
      if (this.acts(name) && control.given) values[name] = control.value;
    }
    if (!("max_new_tokens" in values)) values.max_new_tokens = Number(START.max_new_tokens);
    values.temperature = this.temperature;
    return values;
  }

  /** Say at the control of a field what is wrong with it; whether there is one. */
  blame(name, message) {
    const control = this.controls.get(name);
    if (!control || control.element.hidden) return false;
    control.blame(message);
    control.element.closest("details")?.setAttribute("open", "");
    control.input.focus();
    return true;
  }

  /** How a setting is called on the command line; null where it is not there. */
  option(name) {
    return this.told.get(name)?.option ?? null;
  }
}

function place(one) {
  const first = FIRST.indexOf(one.name);
  return first < 0 ? FIRST.length : first;
}
