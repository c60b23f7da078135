// The list of conversations: opens, removes, begins.

import { byId, h, iconButton } from "./dom.js";

/**
 * Shows the list.
 * @param {{id: string, title: string}[]} conversations
 * @param {string} current the id of the open one.
 * @param {{open: (id: string) => void, remove: (id: string) => void}} actions
 */
export function showHistory(conversations, current, actions) {
  byId("conversations").replaceChildren(
    ...conversations.map((each) => row(each, each.id === current, actions)),
  );
  byId("no-conversations").hidden = conversations.length > 0;
}

function row({ id, title }, isCurrent, actions) {
  const properties = {
    type: "button",
    title,
    "aria-current": isCurrent ? "true" : undefined,
    onclick: () => actions.open(id),
  };
  const remove = iconButton("trash", `Delete “${title}”`, () => actions.remove(id));
  return h("li", {}, h("button.title", properties, title), remove);
}
