// Building elements. Text always becomes a text node: nothing in this page parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * A new element.
 * @param {string} tag the element's name, and classes behind dots: "button.icon".
 * @param {Object} properties `on…` are listeners, names with a hyphen and `role` are attributes, the rest
 *   are properties. Undefined values are left out.
 * @param {...(Node|string|null)} children null is left out.
 */
export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) set(element, key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function set(element, key, value) {
  if (value === undefined) return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key.includes("-") || key === "role") element.setAttribute(key, value);
  else element[key] = value;
}

/** An icon of icons.svg; it has no name of its own. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `page/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon; `label` is its accessible name and its tooltip. */
export function iconButton(name, label, onclick) {
  return h("button.icon", { type: "button", title: label, "aria-label": label, onclick }, icon(name));
}

/** The element of index.html with this id. */
export function byId(id) {
  return document.getElementById(id);
}
