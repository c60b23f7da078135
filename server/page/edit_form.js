// The form that stands in place of a turn while its text is edited.

import { h } from "./dom.js";

/**
 * Puts the form in place of a turn's element. Escape and Cancel bring the turn back.
 * @param {HTMLElement} element
 * @param {string} text
 * @param {string} label of the button that takes the new text.
 * @param {(text: string) => void} take
 */
export function editInPlace(element, text, label, take) {
  const area = h("textarea", { value: text, "aria-label": "Text of the message", rows: 3 });
  const back = () => {
    form.replaceWith(element);
    element.querySelector("button").focus();
  };
  const onsubmit = (event) => {
    event.preventDefault();
    form.replaceWith(element);
    take(area.value);
  };
  const onkeydown = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation(); // it stops no reply
      back();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  };
  const accept = h("button.primary", { type: "submit" }, label);
  const cancel = h("button", { type: "button", onclick: back }, "Cancel");
  const form = h("form.edit", { onsubmit, onkeydown }, area, h("div.row", {}, accept, cancel));
  element.replaceWith(form);
  area.focus();
}
