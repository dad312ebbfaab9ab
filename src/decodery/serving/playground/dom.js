// Elements are made here and nowhere else. Text is only ever set as text, so nothing that a model writes is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function put(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An element of HTML: attributes by name (onclick and its kind are listeners), children are elements or texts. */
export function el(tag, attributes = {}, ...children) {
  return put(document.createElement(tag), attributes, children);
}

/** An element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return put(document.createElementNS(SVG, tag), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** A share as people read it. */
export function percent(share) {
  const value = 100 * share;
  return `${value >= 99.95 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toPrecision(2)} %`;
}

/** A text in quotes, in which signs that cannot be seen are named. */
export function quoted(text) {
  return text === "" ? "(no text)" : `“${shown(text)}”`;
}

/** A text in which signs that cannot be seen are named. */
export function shown(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}

/** Of a text at most so many signs. */
export function shortened(text, most) {
  const signs = [...text];
  return signs.length > most ? signs.slice(0, most - 1).join("") + "…" : text;
}

let numbers = 0;

/** An id that no other element has. */
export function freshId(word) {
  numbers += 1;
  return `${word}-${numbers}`;
}
