// A reply as its tokens, coloured by probability; the one under the pointer or the focus shows what else
// the model might have written there. One stop of the Tab key; arrow keys go from token to token.

import { h } from "./dom.js";

/** The least probability of each level, from the best; style.css has their colours. */
const LEVELS = [0.9, 0.7, 0.5, 0.3, 0.1, 0];
const GAP = 4; // pixels between a token and its alternatives
const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };
let views = 0;

export class TokenView {
  #details = h("div.alternatives", { role: "tooltip", id: `alternatives-${views++}`, hidden: true });
  #list = h("div.tokens", {
    role: "listbox",
    "aria-label": "Tokens of the reply, coloured by probability",
    onkeydown: (event) => this.#move(event),
    onmouseover: (event) => this.#show(event.target),
    onmouseleave: () => this.#hide(),
    onfocusin: (event) => this.#show(event.target),
    onfocusout: () => this.#hide(),
  });
  #tokens = [];

  constructor() {
    this.element = h("div.token-view", {}, this.#list, this.#details);
  }

  /** Shows these tokens; those that are shown already stay. */
  update(tokens) {
    const fresh = tokens
      .slice(this.#tokens.length)
      .map((token, at) => this.#option(token, this.#tokens.length + at));
    this.#tokens = [...tokens];
    this.#list.append(...fresh);
  }

  #option({ token, logprob, unseen }, at) {
    const probability = Math.exp(logprob);
    const level = LEVELS.findIndex((least) => probability >= least);
    const properties = {
      role: "option",
      tabIndex: at ? -1 : 0,
      "data-level": level,
      "aria-label": `${written(token)}, ${percent(probability)}`,
      "aria-describedby": this.#details.id,
      "aria-selected": "false",
    };
    return h(unseen ? "span.special" : "span", properties, token);
  }

  #move(event) {
    const options = [...this.#list.children];
    const target = options[options.indexOf(event.target) + STEPS[event.key]];
    if (!target) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  }

  #show(option) {
    const at = [...this.#list.children].indexOf(option);
    if (at < 0) return;
    this.#details.replaceChildren(...rows(this.#tokens[at]));
    this.#details.hidden = false;
    place(this.#details, option);
  }

  #hide() {
    this.#details.hidden = true;
  }
}

/** The alternatives at one place, the token itself marked; it is added if it is not among the likeliest. */
function rows(chosen) {
  const among = chosen.top.some((other) => other.token === chosen.token);
  const listed = among ? chosen.top : [...chosen.top, chosen];
  return listed.map((other) => {
    const probability = Math.exp(other.logprob);
    const bar = h("meter", { min: 0, max: 1, value: probability, "aria-hidden": "true" });
    const row = other.token === chosen.token ? "div.alternative.chosen" : "div.alternative";
    return h(row, {}, h("code", {}, written(other.token)), bar, h("span", {}, percent(probability)));
  });
}

/** Puts the box below the token, or above it where the conversation has no room below. */
function place(box, option) {
  const view = box.parentElement.getBoundingClientRect();
  const token = option.getClientRects()[0];
  const { bottom } = box.closest("#transcript").getBoundingClientRect();
  const left = Math.min(token.left - view.left, view.width - box.offsetWidth);
  const fits = token.bottom + GAP + box.offsetHeight < bottom;
  const top = fits ? token.bottom + GAP : token.top - GAP - box.offsetHeight;
  box.style.left = `${Math.max(0, left)}px`;
  box.style.top = `${top - view.top}px`;
}

/** A token with its spaces and ends of lines visible. */
function written(token) {
  return token.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}

function percent(probability) {
  const value = probability * 100;
  return value > 0 && value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}
