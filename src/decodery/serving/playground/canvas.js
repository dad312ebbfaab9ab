// A canvas as it fills, or a text as it grows by insertions: live while the steps come, and to any step afterwards.

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
    this.heading = el("h4", {}, "The canvas");
    this.element = el(
      "section",
      { class: "filling", hidden: true },
      this.heading,
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

  /** A step was taken: cells of a canvas were filled, or a token was inserted into a text. */
  take(event) {
    if (event.type === "inserted") this.heading.textContent = "The text as it grew";
    else if (!this.cells.length) {
      this.heading.textContent = "The canvas";
      this.cells = Array.from({ length: event.length }, () => el("span", { class: "cell" }, " "));
      this.grid.replaceChildren(...this.cells);
    }
    this.element.hidden = false;
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
    if (step.type === "inserted") {
      this.insert(step);
      return;
    }
    step.offsets.forEach((offset, at) => this.write(this.cells[offset], step.tokens[at], `cell ${offset}`, step.step, this.length));
  }

  /** Insert a cell; those from there on move one to the right. */
  insert(step) {
    const cell = el("span", {});
    this.grid.insertBefore(cell, this.cells[step.offset] ?? null);
    this.cells.splice(step.offset, 0, cell);
    if (step.step >= 0) this.write(cell, step.token, `inserted at ${step.offset}`, step.step, this.steps.length);
    else this.write(cell, step.token, "given", 0, 1);
    if (step.step < 0) cell.classList.add("given");
  }

  write(cell, token, where, step, length) {
    cell.className = "cell filled now";
    cell.textContent = shown(token).trim() || "␣";
    cell.title = where === "given" ? `${quoted(token)}, given` : `${quoted(token)}, ${where}, step ${step}`;
    cell.style.setProperty("--hue", stepHue(step, length));
  }

  /** Whether it is a text that grows, which has no cells to be filled. */
  get grows() {
    return this.steps.length > 0 && this.steps[0].type === "inserted";
  }

  /** The canvas after so many of the steps. */
  go(count) {
    if (this.grows) {
      this.cells = [];
      this.grid.replaceChildren();
    }
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
    const cells = this.grows ? `${this.length} tokens` : `${filled} of ${this.length} cells filled`;
    this.told.textContent = `${count} of ${this.steps.length}, ${cells}`;
    const texts = this.cells.map((cell) => (cell.classList.contains("filled") ? cell.textContent : "_"));
    this.grid.setAttribute("aria-label", `${this.grows ? "Text" : "Canvas"}: ${texts.join(" ")}`);
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
