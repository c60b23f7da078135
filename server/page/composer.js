// The field for the next message: Enter sends, Shift and Enter begin a line, Escape stops a reply.

import { byId } from "./dom.js";

const TOUCH = matchMedia("(hover: none)");

export class Composer {
  #form = byId("composer");
  #field = byId("message");

  /** @param {{send: () => void, stop: () => void}} actions `send` takes the text. */
  constructor(actions) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.text.trim()) actions.send();
    });
    this.#field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    byId("stop").addEventListener("click", actions.stop);
    document.addEventListener("keydown", (event) => {
      const elsewhere = document.querySelector("dialog[open]");
      if (event.key === "Escape" && !elsewhere && !byId("stop").hidden) actions.stop();
    });
  }

  /** Shows whether a reply runs. */
  busy(running) {
    const held = document.activeElement;
    byId("stop").hidden = !running;
    byId("send").hidden = running;
    if (held?.id === "stop" && !running) this.focus();
  }

  /** Puts a text into the field. */
  fill(text) {
    this.#field.value = text;
    this.focus();
  }

  /** What is typed and not sent. */
  get text() {
    return this.#field.value;
  }

  /** What is typed; the field is empty then. */
  take() {
    const { text } = this;
    this.#field.value = "";
    return text;
  }

  /** Puts the focus into the field; not on a touch screen, where that opens the keyboard. */
  focus() {
    if (!TOUCH.matches) this.#field.focus();
  }
}
