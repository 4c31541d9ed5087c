"use strict";
// What all parts of the page use: the data, elements made of text, numbers in words, the colours of the scheme.

const DATA = JSON.parse(document.getElementById("data").textContent);

// An element with properties, attributes and children. Strings become text, never markup.
function el(tag, told = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(told)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function svg(tag, told = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(told)) made.setAttribute(name, value);
  return made;
}

// Text on one line in which nothing is invisible, and nothing turns the direction of writing.
function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => "⟨" + c.codePointAt(0).toString(16) + "⟩");
}

// What says which problem it is, where there is room for a few words.
function brief(text, most = 36) {
  const shown = visible(String(text));
  return shown.length > most ? shown.slice(0, most - 12) + "…" + shown.slice(-11) : shown;
}

// What is visible, but lines stay lines.
function visibleLines(text) {
  return text.split("\n").map(visible).join("\n");
}

function percent(x) {
  if (x === null || x === undefined) return "–";
  const p = 100 * x;
  if (p > 0 && p < 0.01) return "< 0.01 %";
  return (Math.abs(p) < 0.995 ? p.toFixed(2) : Math.abs(p) < 9.95 ? p.toFixed(1) : p.toFixed(0)) + " %";
}

function short(x) {
  if (x === null || x === undefined) return "–";
  if (Number.isInteger(x) || Math.abs(x) >= 1000) return Math.round(x).toLocaleString("en");
  return Math.abs(x) >= 0.001 || x === 0 ? String(Number(x.toPrecision(3))) : x.toExponential(1);
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A labelled choice among values; `change` gets the index.
function choice(label, values, chosen, change) {
  const select = el("select", { "aria-label": label, onchange: () => change(select.selectedIndex) }, ...values.map((v) => el("option", {}, v)));
  select.selectedIndex = chosen;
  return el("label", { className: "pick" }, label + " ", select);
}

const ON_SCHEME = []; // what is drawn anew when the scheme changes between light and dark
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => ON_SCHEME.forEach((draw) => draw()));

const RUN_COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];
for (const key of document.querySelectorAll(".key")) key.classList.add("key" + (key.dataset.run % RUN_COLOURS.length));
