// What a search has considered, as a tree: the texts that it kept, and those that it left.

import { el, quoted, shortened, shown } from "./dom.js";
import { laid, picture } from "./tree.js";

const LONGEST = 28;
const ROOT = -1;
const KINDS = { root: "what stood there before", kept: "of a text that is given", left: "left" };

export class SearchView {
  constructor() {
    this.words = el("p", { class: "words" });
    this.picture = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Picture of the search" });
    this.element = el("section", { class: "search", hidden: true }, el("h4", {}, "The tree of the search"), this.words, this.picture);
    this.clear();
  }

  clear() {
    this.nodes = [];
    this.places = new Map();
    /** Of each node as the engine numbers it, its place here. */
    this.told = [];
    /** Of each text, the node at which it stands. */
    this.ends = new Map();
    this.element.hidden = true;
  }

  /** The search goes on with further texts. */
  take(event) {
    event.tokens.forEach((text, at) => {
      const parent = event.parents[at] === ROOT ? ROOT : this.told[event.parents[at]];
      const node = this.grow(parent, event.token_ids[at], text);
      this.told.push(node);
      this.nodes[node].score = event.scores[at];
    });
    this.element.hidden = false;
    this.later();
  }

  /** A token of a text that is given. */
  token(event) {
    this.ends.set(event.text, this.grow(this.ends.get(event.text) ?? ROOT, event.token_id, event.token));
  }

  grow(parent, id, text) {
    const place = `${parent} ${id}`;
    if (!this.places.has(place)) {
      this.places.set(place, this.nodes.length);
      this.nodes.push({ parent, text, score: null });
    }
    return this.places.get(place);
  }

  /** Draw it before the page is painted again, once for all that has come until then. */
  later() {
    this.waiting ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = null;
    if (this.element.hidden) return;
    const { runs, kept } = this.runs();
    const places = laid(runs.map((run) => run.parent), new Set(runs.keys().filter((at) => runs[at].kept)));
    const root = { text: "(prompt)", kind: "root", parent: null, label: "(prompt)", ...places.get(ROOT) };
    const drawn = runs.map((run, at) => ({ ...this.said(run), parent: run.parent, ...places.get(at) }));
    this.words.textContent = `${this.nodes.length} tokens considered, ${kept.size} of them kept.`;
    this.picture.replaceChildren(picture([root, ...drawn], KINDS, `Tree of the search: ${this.words.textContent}`));
  }

  /** Runs of nodes on which no text parts from another, each with the place of the run before it. */
  runs() {
    const children = new Map([[ROOT, []]]);
    this.nodes.forEach((node, at) => {
      children.set(at, []);
      children.get(node.parent).push(at);
    });
    const kept = new Set();
    for (let node of this.ends.values()) for (; node !== ROOT; node = this.nodes[node].parent) kept.add(node);
    const runs = [];
    const walk = (node, parent) => {
      const own = [node];
      for (;;) {
        const next = children.get(own.at(-1));
        if (next.length !== 1 || kept.has(next[0]) !== kept.has(node)) break;
        own.push(next[0]);
      }
      const at = runs.push({ nodes: own, parent, kept: kept.has(node) }) - 1;
      for (const child of children.get(own.at(-1))) walk(child, at);
    };
    for (const node of children.get(ROOT)) walk(node, ROOT);
    return { runs, kept };
  }

  said(run) {
    const text = run.nodes.map((node) => this.nodes[node].text).join("");
    const { score } = this.nodes[run.nodes.at(-1)];
    const label = shortened(shown(text).replaceAll(" ", "␣") || "∅", LONGEST);
    return { text, kind: run.kept ? "kept" : "left", label, more: score === null ? "" : `, at ${score.toFixed(2)}` };
  }
}
