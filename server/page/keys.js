// The API key: kept for this tab, or in the browser if the user wants that; asked for when the server does.

import { byId } from "./dom.js";

const NAME = "distaff-key";

export class Keys {
  #dialog = byId("key-dialog");
  #form = this.#dialog.querySelector("form");
  #asked = null;

  constructor() {
    this.#form.addEventListener("submit", (event) => this.#take(event));
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
  }

  /** The headers that carry the key, if there is one. */
  headers() {
    const key = sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME);
    return key ? { authorization: `Bearer ${key}` } : {};
  }

  /** Forgets the key. */
  forget() {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
  }

  /**
   * Asks for a key. Requests that ask at the same time share the dialog.
   * @param {string} reason what the server said.
   * @returns {Promise<boolean>} whether there is a new key.
   */
  ask(reason) {
    this.#asked ??= this.#open(reason).finally(() => (this.#asked = null));
    return this.#asked;
  }

  #open(reason) {
    byId("key-reason").textContent = reason;
    this.#form.reset();
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
    return new Promise((resolve) => {
      const closed = () => resolve(this.#dialog.returnValue === "given");
      this.#dialog.addEventListener("close", closed, { once: true });
    });
  }

  #take(event) {
    event.preventDefault();
    const { key, remember } = this.#form.elements;
    this.forget();
    (remember.checked ? localStorage : sessionStorage).setItem(NAME, key.value.trim());
    this.#form.reset();
    this.#dialog.close("given");
  }
}
