// The sampling parameters: a field for each one that the server names, and the value of what is typed.
//
// Names, defaults and meanings come from /v1/capabilities, so a new parameter of the server needs no change
// here. An empty field leaves the parameter out of the request; its placeholder is the server's default.

import { h } from "./dom.js";

/** Those that are always in view; the others are folded. */
const MAIN = ["max_tokens", "temperature", "top_p", "top_k", "seed", "stop"];
/** Numbers whose default is null, and what that means. */
const NUMBERS = { max_tokens: "no limit", seed: "random" };
/** The page shows one reply. */
const LEFT_OUT = ["n"];

/** The names of the server's parameters: those in view, and the folded ones. */
export function namesOf(defaults) {
  const names = Object.keys(defaults).filter((name) => !LEFT_OUT.includes(name));
  return {
    main: MAIN.filter((name) => names.includes(name)),
    more: names.filter((name) => !MAIN.includes(name)),
  };
}

/** How a parameter is typed: number, boolean, text, lines (one string each) or json. */
export function kindOf(name, value) {
  if (name === "stop") return "lines";
  if (Object.hasOwn(NUMBERS, name) || typeof value === "number") return "number";
  if (typeof value === "boolean") return "boolean";
  return typeof value === "string" ? "text" : "json";
}

/**
 * The value of what is typed in a field.
 * @throws {SyntaxError} it is not a number, or not JSON.
 */
export function valueOf(kind, typed) {
  if (kind === "number") return numberOf(typed);
  if (kind === "lines") return typed.split("\n").filter((line) => line);
  return kind === "text" ? typed : JSON.parse(typed);
}

function numberOf(typed) {
  const value = Number(typed);
  if (!Number.isFinite(value)) throw new SyntaxError(`expected a number, got "${typed}"`);
  if (Math.abs(value) > Number.MAX_SAFE_INTEGER)
    throw new SyntaxError(`expected less than 2^53, got ${typed}`);
  return value;
}

/** A labelled field for one parameter. */
export function fieldFor(name, value, meaning) {
  const id = `parameter-${name}`;
  const control = controlFor(kindOf(name, value), value, NUMBERS[name] ?? "none");
  Object.assign(control, { id, name });
  control.setAttribute("aria-describedby", `${id}-meaning`);
  const hint = h("p.hint", { id: `${id}-meaning` }, ...prose(meaning ?? ""));
  return h("div.field.parameter", {}, h("label", { htmlFor: id }, h("code", {}, name)), control, hint);
}

/** A text whose code is between backquotes. */
function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));
}

function controlFor(kind, value, none) {
  const placeholder = isNone(value) ? none : JSON.stringify(value);
  if (kind === "boolean") {
    const options = [
      ["", `${value} (default)`],
      [String(!value), String(!value)],
    ];
    return h("select", {}, ...options.map(([given, text]) => h("option", { value: given }, text)));
  }
  if (kind === "lines") return h("textarea", { rows: 1, placeholder: "none; one on each line" });
  return h("input", { type: "text", autocomplete: "off", spellcheck: false, placeholder });
}

function isNone(value) {
  return value === null || value === "" || (typeof value === "object" && !Object.keys(value).length);
}
