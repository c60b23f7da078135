// One turn of the conversation on the page: its text or tokens, reasoning, calls of tools, figures, buttons.
//
// A view is made for a turn and updated while the turn grows. What its buttons do is decided elsewhere:
// `actions` has `edit(turn, text)` and `retry(turn)`.

import { copyText } from "./clipboard.js";
import { h, iconButton } from "./dom.js";
import { editInPlace } from "./edit_form.js";
import { figures } from "./generation.js";
import { MarkdownView } from "./markdown.js";
import { TokenView } from "./token_view.js";

/** The view for a turn of any role. */
export function viewOf(turn, actions) {
  const views = { user: UserView, assistant: ReplyView, tool: ResultView };
  return new views[turn.role](turn, actions);
}

class UserView {
  constructor(turn, actions) {
    const body = h("div.text", {}, turn.content);
    const buttons = h(
      "div.buttons",
      {},
      iconButton("copy", "Copy message", () => copyText(turn.content)),
      editButton("Edit message", "Send again", () => this.element, turn, actions),
    );
    this.element = h("article.turn.user", { "aria-label": "You" }, body, buttons);
  }

  /** A user's turn does not change. */
  update() {}
}

class ResultView {
  constructor(turn) {
    const summary = h("summary", {}, "Result of ", h("code", {}, turn.name));
    const result = h("pre", { tabIndex: 0 }, turn.content || "(empty)");
    this.element = h(
      "article.turn.tool",
      { "aria-label": `Tool ${turn.name}` },
      h("details", {}, summary, result),
    );
  }

  /** A result does not change. */
  update() {}
}

class ReplyView {
  #turn;
  #markdown = new MarkdownView();
  #tokens = new TokenView();
  #reasoning = folded("reasoning");
  #calls = h("div");
  #waiting = h("div.waiting", { "aria-label": "Waiting for the reply", role: "img" }, h("i"), h("i"), h("i"));
  #error = h("p.error", { role: "alert" });
  #figures = h("p.figures");
  #buttons = h("div.buttons");
  #switch;

  constructor(turn, actions) {
    this.#turn = turn;
    this.#switch = iconButton("tokens", "Show tokens by probability", () => this.#toggle());
    this.#switch.setAttribute("aria-pressed", "true");
    this.#buttons.append(
      iconButton("copy", "Copy reply", () => copyText(turn.content)),
      editButton("Edit reply", "Save", () => this.element, turn, actions),
      iconButton("retry", "Retry", () => actions.retry(turn)),
      this.#switch,
    );
    const foot = h("div.foot", {}, this.#buttons, this.#figures);
    const body = [this.#reasoning, this.#waiting, this.#markdown.element, this.#tokens.element, this.#calls];
    this.element = h("article.turn.reply", { "aria-label": "Reply" }, ...body, this.#error, foot);
    this.update();
  }

  /** Shows what the turn has now. */
  update() {
    const { content, reasoning, calls, tokens, state, error } = this.#turn;
    const running = state === "running";
    this.element.setAttribute("aria-busy", running);
    this.#waiting.hidden = !running || Boolean(content || calls.length);
    this.#markdown.update(content);
    this.#tokens.update(tokens);
    show(this.#reasoning, reasoning, content || !running ? "Reasoning" : "Reasoning …");
    while (this.#calls.childElementCount < calls.length) this.#calls.append(folded("call"));
    calls.forEach((call, at) =>
      show(this.#calls.children[at], pretty(call.arguments), "Calls ", h("code", {}, call.name)),
    );
    this.#error.hidden = state !== "failed";
    this.#error.textContent = error ?? "";
    this.#figures.textContent = figures(this.#turn).join(" · ");
    this.#buttons.hidden = running;
    this.#choose();
  }

  #toggle() {
    const pressed = this.#switch.getAttribute("aria-pressed") === "true";
    this.#switch.setAttribute("aria-pressed", !pressed);
    this.#choose();
  }

  /** The text or its tokens: the tokens if there are any, unless the user wants the text. */
  #choose() {
    const asTokens = this.#turn.tokens.length > 0 && this.#switch.getAttribute("aria-pressed") === "true";
    this.#switch.hidden = !this.#turn.tokens.length;
    this.#tokens.element.hidden = !asTokens;
    this.#markdown.element.hidden = asTokens;
  }
}

/** A button that opens the form for a turn's text; `element` is asked for when it is pressed. */
function editButton(name, accept, element, turn, actions) {
  const take = (text) => actions.edit(turn, text);
  return iconButton("edit", name, () => editInPlace(element(), turn.content, accept, take));
}

/** A folded text, with nothing in it yet. */
function folded(kind) {
  return h(`details.${kind}`, { hidden: true }, h("summary"), h("pre", { tabIndex: 0 }));
}

/** Shows a text in a folded part; reasoning that is empty is not shown. */
function show(details, text, ...summary) {
  details.hidden = !text && details.classList.contains("reasoning");
  details.firstChild.replaceChildren(...summary);
  details.lastChild.textContent = text;
}

/** JSON in lines, as soon as it is complete. */
function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
