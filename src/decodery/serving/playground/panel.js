// What one method gives: its text, its numbers, and how it came about.

import { CanvasView } from "./canvas.js";
import { el } from "./dom.js";
import { SearchView } from "./search.js";
import { Rounds, TreeView } from "./tree.js";
import { TokenText } from "./tokens.js";

const LEGEND = [
  ["drafted", "drafted and accepted"],
  ["bonus", "the model's own after a draft"],
  ["plain", "plain"],
];

export class Panel {
  /** title: how it is called; card: where what is known of a token is shown. */
  constructor(title, card) {
    this.title = title;
    this.text = new TokenText(card, (index) => this.tree.goTo(index));
    this.tree = new TreeView((indices) => this.text.mark(indices));
    this.canvas = new CanvasView();
    this.search = new SearchView();
    this.heading = el("h3", {}, title);
    this.state = el("p", { class: "state" });
    this.legend = el("ul", { class: "legend", "aria-label": "Colours" });
    this.whole = el("p", { class: "visually-hidden" });
    this.numbers = el("dl", { class: "numbers" });
    this.element = el(
      "article",
      { class: "panel", "aria-label": title },
      this.heading,
      this.state,
      this.legend,
      this.text.box,
      this.whole,
      this.numbers,
      this.canvas.element,
      this.tree.element,
      this.search.element,
    );
    this.clear();
  }

  clear() {
    this.rounds = new Rounds();
    this.begun = null;
    this.finished = null;
    this.visible = "";
    this.text.clear();
    this.canvas.clear();
    this.search.clear();
    this.tree.take(this.rounds, []);
    this.heading.textContent = this.title;
    this.whole.textContent = "";
    this.numbers.replaceChildren();
    this.legend.replaceChildren();
    this.say("");
  }

  say(state) {
    this.state.textContent = state;
    this.element.dataset.state = state;
  }

  get tokens() {
    return this.text.tokens;
  }

  /** Take an event of the stream. */
  take(event) {
    if (event.type === "begun") this.begin(event);
    else if (event.type === "drafted") this.rounds.draft(event);
    else if (event.type === "branched") this.search.take(event);
    else if (event.type === "unmasked" || event.type === "inserted") this.canvas.take(event);
    else if (event.type === "token") {
      this.rounds.token(event, this.tokens.length);
      this.visible += event.visible;
      this.text.add(event, this.canvas.length);
      this.keys(event.came);
      this.search.token(event);
    } else if (event.type === "finished") this.finish(event);
  }

  begin(event) {
    this.begun = event;
    this.heading.textContent = event.method;
    this.say(`running, ${event.exactness}, seed ${event.seed}`);
  }

  /** Say what the colours mean that have come up so far. */
  keys(came) {
    if (this.legend.querySelector(`.${came}`)) return;
    const entries = [...LEGEND, ["canvas", "by the step that filled it, early to late"], ["inserted", "by the step that inserted it, early to late"]];
    const [, words] = entries.find(([name]) => name === came);
    this.legend.append(el("li", {}, el("span", { class: `key ${came}` }, "token"), ` ${words}`));
  }

  finish(event) {
    this.finished = event;
    this.text.end(event.visible);
    this.visible += event.visible;
    this.whole.textContent = this.visible;
    const { statistics: own } = event;
    const facts = [
      ["speed", `${speedOf(this).toFixed(1)} tokens/s`],
      ["tokens", own.new_tokens],
      ["passes", own.forwards],
      ["tokens a pass", (own.forwards ? own.new_tokens / own.forwards : 0).toFixed(2)],
      ["first token", `${(own.first_token_seconds * 1000).toFixed(0)} ms`],
      ["whole time", `${own.seconds.toFixed(2)} s`],
      ...(own.drafted ? [["drafted accepted", `${own.accepted} of ${own.drafted}`]] : []),
    ];
    this.numbers.replaceChildren(...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    this.tree.take(this.rounds, this.tokens);
    this.search.draw();
    const ends = { stop: "ended by itself", length: "ended at its length", cancelled: "stopped", error: "failed" };
    this.say(`${ends[event.reason] ?? event.reason}, ${this.begun.exactness}, seed ${this.begun.seed}`);
  }
}

/** Tokens a second from the first ones on, so that reading the prompt does not count; where all came at once, of the whole. */
export function speedOf(panel) {
  const { tokens, finished } = panel;
  const first = tokens.filter((token) => token.pass === tokens[0].pass).length;
  const seconds = tokens.length ? tokens.at(-1).seconds - tokens[0].seconds : 0;
  if (first < tokens.length && seconds > 0) return (tokens.length - first) / seconds;
  return finished ? finished.statistics.tokens_per_second : 0;
}
