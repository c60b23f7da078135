// Copying a text to the clipboard, which the user is told of.

import { h } from "./dom.js";
import { notify } from "./notice.js";

/** Copies a text. Without the clipboard's API, which needs HTTPS or this machine, a selection is copied. */
export async function copyText(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copySelected(text);
  notify("Copied.");
}

function copySelected(text) {
  const area = h("textarea", { value: text });
  const parent = document.querySelector("dialog[open]") ?? document.body;
  parent.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
