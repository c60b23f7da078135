// A short message at the bottom of the page, with an action such as Undo, and a voice for screen readers.

import { byId, h } from "./dom.js";

const SECONDS = 8;
let timer;

/**
 * Shows a message for some seconds, in place of the one before.
 * @param {string} text
 * @param {{label: string, run: () => void}} [action] a button beside it.
 */
export function notify(text, action) {
  const box = byId("notice");
  const run = () => {
    box.hidden = true;
    action.run();
  };
  box.replaceChildren(h("span", {}, text));
  if (action) box.append(h("button.link", { type: "button", onclick: run }, action.label));
  box.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => (box.hidden = true), SECONDS * 1000);
}

/** Says a text to screen readers only. */
export function announce(text) {
  byId("voice").textContent = text;
}
