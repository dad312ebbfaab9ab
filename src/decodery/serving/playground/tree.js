// The draft of a round as a tree: what was proposed, what of it was accepted, and what the model said itself.

import { el, freshId, quoted, shortened, shown, svg } from "./dom.js";

const ROW = 30;
const GAP = 34;
const SIGN = 7.6;
const LONGEST = 16;
const KINDS = { root: "what stood there before", accepted: "accepted", rejected: "rejected", own: "the model's own" };

/** Rounds of a text, from its events. Each has the draft that was verified (or null), and the places of its tokens. */
export class Rounds {
  constructor() {
    this.list = [];
    this.open = null;
  }

  draft(event) {
    this.open = { draft: event, tokens: [] };
    this.list.push(this.open);
  }

  token(token, index) {
    if (this.open === null) {
      this.open = { draft: null, tokens: [] };
      this.list.push(this.open);
    }
    this.open.tokens.push(index);
    if (token.came !== "drafted") this.open = null;
  }

  /** Rounds with a draft. */
  get drafted() {
    return this.list.filter((round) => round.draft !== null);
  }
}

/** Where the nodes of a tree stand, with the root as -1: depth and row of each. Those of the taken path come first. */
export function laid(parents, taken) {
  const children = new Map();
  parents.forEach((parent, node) => children.set(parent, [...(children.get(parent) ?? []), node]));
  const places = new Map();
  let row = 0;
  const walk = (node, depth) => {
    places.set(node, { depth, row });
    const own = [...(children.get(node) ?? [])].sort((a, b) => taken.has(b) - taken.has(a));
    own.forEach((child, at) => {
      if (at > 0) row += 1;
      walk(child, depth + 1);
    });
  };
  walk(-1, 0);
  return places;
}

/** What happened in a round, in a sentence. */
export function roundWords(round, tokens) {
  const mine = round.tokens.map((index) => tokens[index]);
  const accepted = mine.filter((token) => token.came === "drafted");
  const own = mine.find((token) => token.came !== "drafted");
  const drafted = round.draft.tokens.length;
  const took = accepted.length ? `accepted ${accepted.length}: ${quoted(accepted.map((one) => one.token).join(""))}` : "accepted none";
  return `${drafted} drafted, ${took}${own ? `; then the model's own ${quoted(own.token)}` : ""}.`;
}

/** The nodes of a round's tree, the root first. The model's own token hangs on the last accepted one. */
function nodesOf(round, tokens) {
  const mine = round.tokens.map((index) => tokens[index]);
  const accepted = mine.filter((one) => one.came === "drafted").map((one) => one.node);
  const own = mine.find((one) => one.came !== "drafted");
  const said = [...round.draft.tokens, ...(own ? [own.token] : [])];
  const parents = [...round.draft.parents, ...(own ? [accepted.at(-1) ?? -1] : [])];
  const last = round.draft.tokens.length;
  const places = laid(parents, new Set([...accepted, last]));
  const kind = (node) => (node === last ? "own" : accepted.includes(node) ? "accepted" : "rejected");
  const before = tokens[(round.tokens[0] ?? tokens.length) - 1];
  const text = before ? before.token : "(prompt)";
  return [
    { text, kind: "root", parent: null, ...places.get(-1) },
    ...said.map((one, node) => ({ text: one, kind: kind(node), parent: parents[node], ...places.get(node) })),
  ].map((node) => ({ ...node, label: shortened(shown(node.text).replaceAll(" ", "␣") || "∅", LONGEST) }));
}

const widthOf = (node) => [...node.label].length * SIGN + 16;
const middleOf = (node) => node.row * ROW + ROW / 2;

/** A tree as a picture. nodes: the root first; each has its text, label, kind, depth and row, the place of its parent (-1: the
 * root), and `more` that is to be said of it. kinds: what each kind is called. words: what the picture shows. */
export function picture(nodes, kinds, words) {
  const widths = [];
  for (const node of nodes) widths[node.depth] = Math.max(widths[node.depth] ?? 0, widthOf(node));
  const lefts = [4];
  for (const width of widths) lefts.push(lefts.at(-1) + width + GAP);
  const edges = nodes.slice(1).map((node) => {
    const from = nodes[node.parent + 1];
    const [x1, x2] = [lefts[from.depth] + widthOf(from), lefts[node.depth]];
    const [y1, y2] = [middleOf(from), middleOf(node)];
    const half = x2 - GAP / 2;
    return svg("path", { class: `edge ${node.kind}`, d: `M${x1},${y1}H${x2 - GAP}C${half},${y1} ${half},${y2} ${x2},${y2}` });
  });
  const boxes = nodes.map((node) =>
    svg(
      "g",
      { class: `node ${node.kind}` },
      svg("title", {}, `${quoted(node.text)}, ${kinds[node.kind]}${node.more ?? ""}`),
      svg("rect", { x: lefts[node.depth], y: middleOf(node) - 11, width: widthOf(node), height: 22, rx: 5 }),
      svg("text", { x: lefts[node.depth] + 8, y: middleOf(node) + 4.5 }, node.label),
    ),
  );
  const [width, height] = [lefts.at(-1) - GAP + 4, (Math.max(...nodes.map((node) => node.row)) + 1) * ROW];
  return svg("svg", { role: "img", "aria-label": words, width, height, viewBox: `0 0 ${width} ${height}` }, ...edges, ...boxes);
}

/** A view of one round at a time, of those that had a draft. marked: called with the places of the shown round's tokens. */
export class TreeView {
  constructor(marked) {
    this.marked = marked;
    this.rounds = [];
    this.tokens = [];
    this.at = 0;
    const id = freshId("round");
    this.slider = el("input", { id, type: "range", min: 1, max: 1, value: 1, oninput: () => this.go(Number(this.slider.value) - 1) });
    this.told = el("output", { for: id });
    this.words = el("p", { class: "words" });
    this.picture = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Picture of the tree" });
    this.element = el(
      "section",
      { class: "tree", hidden: true },
      el("h4", {}, "The tree of a round"),
      el("div", { class: "slide" }, el("label", { for: id }, "Round"), this.slider, this.told),
      this.words,
      this.picture,
    );
  }

  /** Show the rounds of a text, the first in which most was accepted. */
  take(rounds, tokens) {
    this.rounds = rounds.drafted;
    this.tokens = tokens;
    this.element.hidden = this.rounds.length === 0;
    if (!this.rounds.length) return;
    this.slider.max = this.rounds.length;
    const counts = this.rounds.map((round) => round.tokens.length);
    this.go(counts.indexOf(Math.max(...counts)), false);
  }

  go(at, mark = true) {
    this.at = at;
    const round = this.rounds[at];
    this.slider.value = at + 1;
    this.told.textContent = `${at + 1} of ${this.rounds.length}`;
    this.words.textContent = roundWords(round, this.tokens);
    const words = `Tree of the draft: ${this.words.textContent}`;
    this.picture.replaceChildren(picture(nodesOf(round, this.tokens), KINDS, words));
    if (mark) this.marked(round.tokens);
  }

  /** Show the round that a token came in, if it had a draft. */
  goTo(token) {
    const at = this.rounds.findIndex((round) => round.tokens.includes(token));
    if (at >= 0) this.go(at);
  }
}
