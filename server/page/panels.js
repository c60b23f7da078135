// The two panels beside the conversation. On a wide page they stand beside it, on a narrow one they cover it,
// and then only one of them is open.

import { byId } from "./dom.js";

const NARROW = matchMedia("(max-width: 900px)");
const NAMES = ["history", "settings"];

/** Connects the panels with their buttons; the list of conversations is open on a wide page. */
export function connectPanels() {
  for (const name of NAMES) {
    byId(`${name}-open`).addEventListener("click", () => togglePanel(name, byId(name).hidden));
    byId(`${name}-close`).addEventListener("click", () => togglePanel(name, false));
    byId(name).addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation(); // it stops no reply
      togglePanel(name, false);
    });
  }
  byId("backdrop").addEventListener("click", closeCovering);
  togglePanel("history", !NARROW.matches, false);
  NARROW.addEventListener("change", closeCovering);
}

/** Closes what covers the conversation. */
export function closeCovering() {
  if (NARROW.matches) for (const name of NAMES) togglePanel(name, false, false);
}

/** Opens or closes a panel; the focus goes with it. */
export function togglePanel(name, open, focus = true) {
  if (open && NARROW.matches) closeCovering();
  byId(name).hidden = !open;
  byId(`${name}-open`).setAttribute("aria-expanded", open);
  const none = NAMES.every((each) => byId(each).hidden);
  byId("backdrop").hidden = none;
  document.querySelector("main").inert = NARROW.matches && !none;
  if (focus) byId(open ? `${name}-close` : `${name}-open`).focus();
}
