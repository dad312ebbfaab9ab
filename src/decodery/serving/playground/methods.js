// Choosing a method and its parameters, of which only those are shown that act beside the others.

import { post } from "./api.js";
import { Control, kindOfParameter } from "./controls.js";
import { el, freshId } from "./dom.js";

export class MethodChoice {
  /** label: over the choice. changed: called whenever the method that is meant is another. */
  constructor(label, changed) {
    this.changed = changed;
    this.controls = [];
    this.infos = new Map();
    this.settled = null;
    this.asking = 0;
    const id = freshId("method");
    this.select = el("select", { id, onchange: () => this.choose() });
    this.summary = el("p", { class: "summary" });
    this.badge = el("span", { class: "badge", "data-role": "exactness" });
    this.spec = el("code", { class: "spec", "data-role": "spec" });
    this.fault = el("p", { class: "fault", role: "alert" });
    this.parameters = el("div", { class: "fields" });
    this.folded = el("details", { class: "parameters" }, el("summary", {}, "Parameters"), this.parameters);
    this.element = el(
      "fieldset",
      { class: "method" },
      el("legend", {}, label),
      el("label", { for: id, class: "visually-hidden" }, label),
      this.select,
      el("p", { class: "said" }, this.badge, " ", this.spec),
      this.summary,
      this.fault,
      this.folded,
    );
  }

  /** Offer these methods, of the registry. wanted: the name of the one to choose, where the chosen one is not among them. */
  async offer(infos, wanted) {
    const before = this.select.value;
    this.infos = new Map(infos.map((info) => [info.name, info]));
    const families = [...new Set(infos.map((info) => info.family))];
    const groups = families.map((family) => {
      const own = infos.filter((info) => info.family === family);
      const options = own.map((info) => el("option", { value: info.name }, info.name));
      return el("optgroup", { label: family }, ...options);
    });
    this.select.replaceChildren(...groups);
    if (this.infos.has(before)) {
      this.select.value = before;
      return;
    }
    if (this.infos.has(wanted)) this.select.value = wanted;
    await this.choose();
  }

  get info() {
    return this.infos.get(this.select.value);
  }

  async choose() {
    const { info } = this;
    this.summary.textContent = info ? `${info.title}. ${info.summary}` : "";
    this.controls = (info?.parameters ?? []).map((parameter) => {
      const auto = parameter.auto ? `; left out: ${parameter.auto}` : "";
      return new Control({
        name: parameter.name,
        help: parameter.help + auto,
        kind: kindOfParameter(parameter),
        fallback: parameter.default,
        changed: () => this.settle(),
      });
    });
    this.parameters.replaceChildren(...this.controls.map((control) => control.element));
    await this.settle();
  }

  /** Have the server say how the method is written with these values, and which parameters act beside them. */
  async settle() {
    this.asking += 1;
    const mine = this.asking;
    try {
      const values = {};
      for (const control of this.controls) {
        if (!control.element.hidden && control.given) values[control.name] = control.value;
      }
      const settled = this.info ? await post("/v1/decodery/method", { name: this.info.name, values }) : null;
      if (mine !== this.asking) return;
      this.settled = settled;
      this.fault.textContent = "";
      const acting = new Set(settled?.acts ?? []);
      for (const control of this.controls) control.show(acting.has(control.name));
      this.folded.hidden = acting.size === 0;
      this.badge.textContent = settled?.exactness ?? "";
      this.badge.className = `badge ${settled?.exactness ?? ""}`;
      this.spec.textContent = settled?.method ?? "";
    } catch (error) {
      if (mine !== this.asking) return;
      this.settled = null;
      this.fault.textContent = error.message;
      this.spec.textContent = "";
    }
    this.changed();
  }

  /** The method as one writes it; null where the model chooses. Throws an Error where a parameter cannot be so. */
  get method() {
    if (this.fault.textContent) throw new Error(this.fault.textContent);
    return this.settled?.method ?? null;
  }

  /** Settings that it does not run with, and why. */
  get refuses() {
    return this.info?.refuses ?? {};
  }
}
