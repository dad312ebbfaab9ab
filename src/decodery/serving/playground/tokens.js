// The text of a reply, token by token: coloured by how each came, with what is known of it beside.

import { el, percent, quoted, shown } from "./dom.js";

const CAME = {
  drafted: "Drafted, and accepted",
  bonus: "The model's own token after a draft",
  plain: "Plain: one pass for one token",
  canvas: "A cell of the canvas",
};

/** How a token came, in words. */
export function cameWords(token) {
  if (token.came === "inserted") return token.step < 0 ? "Given between the holes of the prompt" : `Inserted in step ${token.step}`;
  if (token.came === "canvas" && token.step !== null) return `Filled in step ${token.step} of the canvas, cell ${token.offset}`;
  return CAME[token.came];
}

/** The hue of a step of a canvas of so many cells: steps close in time have similar ones. */
export function stepHue(step, length) {
  const share = length > 1 ? Math.min(step / (length - 1), 1) : 0;
  return Math.round((210 + 300 * (1 - share)) % 360);
}

export class TokenText {
  /** chosen: called with the index of a token that was chosen by hand. */
  constructor(card, chosen) {
    this.card = card;
    this.chosen = chosen;
    this.tokens = [];
    this.spans = [];
    this.length = 0;
    this.box = el("div", {
      class: "text",
      role: "group",
      "aria-label": "Tokens; arrow keys go from one to the next",
      onkeydown: (event) => this.key(event),
      onfocusin: (event) => this.point(event),
      onfocusout: () => card.hide(),
      onmouseover: (event) => this.point(event),
      onmouseleave: () => card.hide(),
      onclick: (event) => this.click(event),
    });
  }

  clear() {
    this.tokens = [];
    this.spans = [];
    this.box.replaceChildren();
  }

  /** length: of the canvas that it comes from, where it does. */
  add(token, length) {
    const index = this.tokens.length;
    const silent = token.visible === "";
    const blank = !silent && token.visible.trim() === "" && token.visible.includes("\n");
    const span = el(
      "span",
      { class: `token ${token.came}${silent ? " silent" : ""}${blank ? " blank" : ""}`, "data-index": index, tabindex: index === 0 ? 0 : -1 },
      silent ? "·" : token.visible,
    );
    if (["canvas", "inserted"].includes(token.came) && token.step !== null && token.step >= 0) span.style.setProperty("--hue", stepHue(token.step, length));
    this.tokens.push(token);
    this.spans.push(span);
    this.box.append(span);
  }

  /** The rest of the text, which no single token has brought. */
  end(text) {
    if (text) this.box.append(text);
  }

  /** Mark all tokens from this one on as others than those beside. */
  differFrom(index) {
    this.spans.forEach((span, at) => span.classList.toggle("different", index !== null && at >= index));
  }

  /** Mark the tokens of a round. */
  mark(indices) {
    const now = new Set(indices);
    this.spans.forEach((span, at) => span.classList.toggle("current", now.has(at)));
  }

  point(event) {
    const span = event.target.closest?.(".token");
    if (span) this.card.show(this.tokens[Number(span.dataset.index)], span, event.type === "focusin");
    else this.card.hide();
  }

  click(event) {
    const span = event.target.closest(".token");
    if (!span) return;
    this.focus(Number(span.dataset.index));
    this.chosen(Number(span.dataset.index));
  }

  key(event) {
    const at = this.spans.indexOf(document.activeElement);
    if (at < 0) return;
    const last = this.spans.length - 1;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.card.hide();
    else if (event.key === "Enter" || event.key === " ") this.chosen(at);
    else if (to === undefined) return;
    else this.focus(Math.max(0, Math.min(to, last)));
    event.preventDefault();
  }

  focus(index) {
    for (const span of this.spans) if (span.tabIndex === 0) span.tabIndex = -1;
    this.spans[index].tabIndex = 0;
    this.spans[index].focus();
  }
}

/** What is known of one token, on a card beside it. voice: an element that screen readers read out. */
export class TokenCard {
  constructor(voice) {
    this.voice = voice;
    this.element = el("div", { class: "card", id: "token-card", role: "tooltip", hidden: true });
  }

  hide() {
    this.element.hidden = true;
  }

  /** aloud: it was reached by the keyboard. */
  show(token, span, aloud) {
    const facts = [
      ["how", cameWords(token)],
      ["when", `${token.seconds.toFixed(3)} s, in pass ${token.pass}`],
    ];
    const { logprobs } = token;
    if (logprobs) {
      facts.push(["probability", percent(Math.exp(logprobs.raw))]);
      if (Math.abs(logprobs.processed - logprobs.raw) > 1e-6) {
        facts.push(["as drawn", `${percent(Math.exp(logprobs.processed))} after the settings`]);
      }
    }
    this.element.replaceChildren(
      el("p", { class: "card-title" }, el("strong", {}, quoted(token.token)), ` token ${token.token_id}`),
      el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      logprobs?.top.length ? alternatives(logprobs.top, token.token_id) : null,
    );
    this.element.hidden = false;
    this.place(span);
    if (aloud) this.voice.textContent = `${quoted(token.token)}: ${facts.map(([name, value]) => `${name} ${value}`).join("; ")}`;
  }

  /** Below the token, or above it where there is no room; on narrow screens the style sheet docks it. */
  place(span) {
    const [first] = span.getClientRects();
    if (!first) return;
    const { style, offsetWidth, offsetHeight } = this.element;
    const left = Math.max(8, Math.min(first.left, document.documentElement.clientWidth - offsetWidth - 8));
    const below = first.bottom + 6;
    const top = below + offsetHeight > window.innerHeight - 8 ? Math.max(8, first.top - offsetHeight - 6) : below;
    style.setProperty("--left", `${left}px`);
    style.setProperty("--top", `${top}px`);
  }
}

function alternatives(top, taken) {
  const rows = top.map(([text, id, value]) => {
    const bar = el("span", { class: "bar" });
    bar.style.setProperty("--share", Math.exp(value));
    return el(
      "tr",
      { class: id === taken ? "taken" : "" },
      el("td", {}, shown(text) || "(no text)"),
      el("td", { class: "meter" }, bar),
      el("td", { class: "number" }, percent(Math.exp(value))),
    );
  });
  return el("table", {}, el("caption", {}, "likeliest tokens here"), el("tbody", {}, ...rows));
}
