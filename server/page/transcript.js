// The conversation on the page: a view for each turn, the form for results of tools, and where it scrolls.

import { byId, h } from "./dom.js";
import { openCalls } from "./conversation.js";
import { viewOf } from "./turn_view.js";

const NEAR = 80; // pixels from the end within which new text is followed

export class Transcript {
  #box = byId("transcript");
  #list = byId("turns");
  #actions;
  #last = null;
  #frame = 0;

  /** @param {Object} actions of the turns' buttons, and `answer(results)` for results of tools. */
  constructor(actions) {
    this.#actions = actions;
  }

  /** Shows a conversation from its beginning. */
  show(turns) {
    const views = turns.map((turn) => viewOf(turn, this.#actions));
    this.#last = views.at(-1) ?? null;
    this.#list.replaceChildren(...views.map((view) => view.element));
    byId("welcome").hidden = turns.length > 0;
    this.#ask(turns);
    this.#box.scrollTop = this.#box.scrollHeight;
  }

  /** Shows what has changed in the last turn, once for each picture that the screen shows. */
  refresh() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#following(() => this.#last?.update());
    });
  }

  /** Shows the last of a reply, and asks for the results of the tools that it calls. */
  end(turns) {
    this.#following(() => {
      this.#last.update();
      this.#ask(turns);
    });
  }

  /** Makes a change; who sees the end of the conversation sees its new end. */
  #following(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.#box;
    change();
    if (scrollHeight - scrollTop - clientHeight < NEAR) this.#box.scrollTop = this.#box.scrollHeight;
  }

  /** The form for the results of the tools that the last reply calls. */
  #ask(turns) {
    const calls = turns.at(-1)?.state === "running" ? [] : openCalls(turns);
    if (!calls.length) return;
    const fields = calls.map((call, at) => resultField(call, at));
    const onsubmit = (event) => {
      event.preventDefault();
      this.#actions.answer(
        calls.map((call, at) => ({ call, content: event.target.elements[`result-${at}`].value })),
      );
    };
    const send = h("button.primary", { type: "submit" }, calls.length > 1 ? "Send results" : "Send result");
    this.#list.append(h("form.results", { onsubmit, "aria-label": "Results of tools" }, ...fields, send));
  }
}

function resultField(call, at) {
  const id = `result-${at}`;
  const label = h("label", { htmlFor: id }, "Result of ", h("code", {}, call.name));
  return h(
    "div.field",
    {},
    label,
    h("textarea", { id, name: id, rows: 2, placeholder: "What the tool returned" }),
  );
}
