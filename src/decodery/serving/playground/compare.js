// Two methods on one prompt: whether they gave the same tokens, and how fast each was.

import { el, quoted } from "./dom.js";
import { speedOf } from "./panel.js";

/** The first place at which two texts differ; null where they are the same tokens. */
export function firstDifference(a, b) {
  const most = Math.max(a.length, b.length);
  for (let at = 0; at < most; at += 1) if (a[at]?.token_id !== b[at]?.token_id) return at;
  return null;
}

function verdict(first, second) {
  const at = firstDifference(first.tokens, second.tokens);
  if (at === null) return { same: true, words: `Same tokens: all ${first.tokens.length}.` };
  const [a, b] = [first, second].map((panel) => (panel.tokens[at] ? quoted(panel.tokens[at].token) : "the end"));
  return { same: false, at, words: `Not the same tokens: from token ${at + 1} on, ${a} and ${b}.` };
}

const PROMISES = {
  "identical-to-sampling": "promises texts of the same law, not the same tokens",
  "greedy-identical": "promises the same tokens at temperature 0 alone",
  "identical-to-static": "promises the tokens of its own static schedule",
  approximate: "promises no certain tokens",
  "quality-changing": "writes other texts on purpose",
};

/** Why the tokens may differ: what the methods promise of them. */
function promises(first, second) {
  const begun = [first.begun, second.begun];
  const said = begun.filter(({ exactness }) => exactness in PROMISES);
  if (!said.length) return "Both promise the same tokens; decodery check looks into it.";
  const words = said.map(({ method, exactness }) => `${method.split("(")[0]} ${PROMISES[exactness]}`);
  return `${[...new Set(words)].join("; ")}.`;
}

function speedWords(speeds) {
  const [a, b] = speeds;
  if (!(a > 0 && b > 0)) return "";
  const ratio = Math.max(a, b) / Math.min(a, b);
  return ratio < 1.02 ? "Equally fast." : `The ${b > a ? "second" : "first"} is ${ratio.toFixed(2)} times as fast.`;
}

/** The verdict over two finished panels. */
export function compared(first, second) {
  const { same, at, words } = verdict(first, second);
  for (const panel of [first, second]) panel.text.differFrom(same ? null : at);
  const speeds = [first, second].map(speedOf);
  const bars = [first, second].map((panel, place) => {
    const bar = el("span", { class: "bar" });
    bar.style.setProperty("--share", speeds[place] / Math.max(...speeds, 1e-9));
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, panel.begun.method),
      el("td", { class: "meter" }, bar),
      el("td", { class: "number" }, `${speeds[place].toFixed(1)} tokens/s`),
    );
  });
  return [
    el(
      "p",
      { class: same ? "verdict same" : "verdict other" },
      el("strong", {}, words),
      ` ${speedWords(speeds)}`,
      same ? null : ` ${promises(first, second)}`,
    ),
    el("table", { class: "speeds" }, el("caption", { class: "visually-hidden" }, "Speed"), el("tbody", {}, ...bars)),
  ];
}
