// The dialog that shows the next request as a program.

import { copyText } from "./clipboard.js";
import { byId, h } from "./dom.js";
import { LANGUAGES } from "./snippets.js";

export class CodeDialog {
  #dialog = byId("code-dialog");
  #text = byId("code-text");
  #body = null;

  constructor() {
    const choices = Object.keys(LANGUAGES).map((language, at) => choice(language, at === 0));
    byId("languages").append(...choices);
    byId("languages").addEventListener("change", () => this.#show());
    byId("code-copy").addEventListener("click", () => this.#copy());
    byId("code-close").addEventListener("click", () => this.#dialog.close());
  }

  /** Opens it for a request's body. */
  open(body) {
    this.#body = body;
    this.#show();
    this.#dialog.showModal();
  }

  #show() {
    const language = this.#dialog.querySelector("input:checked").value;
    const address = new URL("v1/", document.baseURI).href;
    this.#text.textContent = LANGUAGES[language](address, this.#body);
    byId("code-copy").textContent = "Copy";
  }

  async #copy() {
    await copyText(this.#text.textContent);
    byId("code-copy").textContent = "Copied";
  }
}

function choice(language, checked) {
  const input = h("input", { type: "radio", name: "language", value: language, checked });
  return h("label.choice", {}, input, h("span", {}, language));
}
