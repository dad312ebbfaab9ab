// A canvas as it fills: live while the steps come, and to any step afterwards.

import { el, freshId, quoted, shown } from "./dom.js";
import { stepHue } from "./tokens.js";

const PAUSE = 220;
/** Between two steps when it is played again, in milliseconds. */

export class CanvasView {
  constructor() {
    this.steps = [];
    this.cells = [];
    this.timer = null;
    const id = freshId("step");
    this.slider = el("input", { id, type: "range", min: 0, max: 0, value: 0, oninput: () => this.stopAt(Number(this.slider.value)) });
    this.told = el("output", { for: id });
    this.button = el("button", { type: "button", onclick: () => this.play() }, "Play");
    this.grid = el("div", { class: "canvas", role: "img" });
    this.element = el(
      "section",
      { class: "filling", hidden: true },
      el("h4", {}, "The canvas"),
      this.grid,
      el("div", { class: "slide" }, this.button, el("label", { for: id }, "Step"), this.slider, this.told),
    );
  }

  clear() {
    this.pause();
    this.steps = [];
    this.cells = [];
    this.grid.replaceChildren();
    this.element.hidden = true;
  }

  /** A step was taken. */
  take(event) {
    if (!this.cells.length) {
      this.cells = Array.from({ length: event.length }, () => el("span", { class: "cell" }, " "));
      this.grid.replaceChildren(...this.cells);
      this.element.hidden = false;
    }
    this.steps.push(event);
    this.slider.max = this.steps.length;
    this.fill(event);
    this.tell(this.steps.length);
  }

  get length() {
    return this.cells.length;
  }

  fill(step) {
    for (const cell of this.cells) cell.classList.remove("now");
    step.offsets.forEach((offset, at) => {
      const cell = this.cells[offset];
      cell.className = "cell filled now";
      cell.textContent = shown(step.tokens[at]).trim() || "␣";
      cell.title = `${quoted(step.tokens[at])}, cell ${offset}, step ${step.step}`;
      cell.style.setProperty("--hue", stepHue(step.step, this.length));
    });
  }

  /** The canvas after so many of the steps. */
  go(count) {
    for (const cell of this.cells) {
      cell.className = "cell";
      cell.textContent = " ";
      cell.removeAttribute("title");
    }
    for (const step of this.steps.slice(0, count)) this.fill(step);
    this.tell(count);
  }

  tell(count) {
    const filled = this.cells.filter((cell) => cell.classList.contains("filled")).length;
    this.slider.value = count;
    this.told.textContent = `${count} of ${this.steps.length}, ${filled} of ${this.length} cells filled`;
    const texts = this.cells.map((cell) => (cell.classList.contains("filled") ? cell.textContent : "_"));
    this.grid.setAttribute("aria-label", `Canvas: ${texts.join(" ")}`);
  }

  stopAt(count) {
    this.pause();
    this.go(count);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }

  play() {
    if (this.timer !== null) {
      this.pause();
      return;
    }
    let count = Number(this.slider.value) >= this.steps.length ? 0 : Number(this.slider.value);
    this.button.textContent = "Pause";
    this.go(count);
    this.timer = setInterval(() => {
      count += 1;
      this.go(count);
      if (count >= this.steps.length) this.pause();
    }, PAUSE);
  }
}
