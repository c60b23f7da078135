// Markdown as DOM nodes. marked's lexer reads the text; every node is built here, from a fixed list of
// elements, with text nodes inside. HTML in the text is shown as text. Links are followed only on a click and
// only to the web or mail; images become links, because loading one would tell another host of the reply.

import { copyText } from "./clipboard.js";
import { h } from "./dom.js";
import { lexer } from "./vendor/marked.esm.js";

const SCHEMES = ["http:", "https:", "mailto:"];
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

/** Shows a text that grows. Blocks that have not changed keep their nodes, and with them a selection. */
export class MarkdownView {
  #blocks = [];

  constructor() {
    this.element = h("div.markdown");
  }

  /** Shows this text. */
  update(text) {
    const tokens = lexer(text).filter((token) => !["space", "def"].includes(token.type));
    const written = tokens.map((token) => JSON.stringify(token)); // with links, which later text may define
    const changed = written.findIndex((each, at) => each !== this.#blocks[at]?.written);
    const same = changed < 0 ? tokens.length : changed;
    for (const { node } of this.#blocks.splice(same)) node.remove();
    const fresh = tokens
      .slice(same)
      .map((token, at) => ({ written: written[same + at], node: block(token) }));
    this.#blocks.push(...fresh);
    this.element.append(...fresh.map(({ node }) => node));
  }
}

const BLOCKS = {
  heading: (token) => h(`h${Math.min(token.depth + 1, 6)}`, {}, ...inline(token.tokens)),
  paragraph: (token) => h("p", {}, ...inline(token.tokens)),
  text: (token) => h("span", {}, ...inlineOf(token)),
  blockquote: (token) => h("blockquote", {}, ...token.tokens.map(block)),
  code: (token) => codeBlock(token.text, token.lang),
  hr: () => h("hr"),
  list,
  table,
};

const INLINES = {
  strong: (token) => h("strong", {}, ...inline(token.tokens)),
  em: (token) => h("em", {}, ...inline(token.tokens)),
  del: (token) => h("del", {}, ...inline(token.tokens)),
  codespan: (token) => h("code", {}, token.text),
  br: () => h("br"),
  checkbox: (token) =>
    h("input", { type: "checkbox", disabled: true, checked: token.checked, "aria-label": "done" }),
  link: (token) => link(token.href, ...inline(token.tokens)),
  image: (token) => link(token.href, `Image: ${decoded(token.text) || token.href}`),
  escape: (token) => token.text,
  text: (token) => (token.tokens ? h("span", {}, ...inline(token.tokens)) : decoded(token.text)),
};

/** The node of a block; what is not known is shown as it is written. */
function block(token) {
  const make = Object.hasOwn(BLOCKS, token.type) ? BLOCKS[token.type] : null;
  return make ? make(token) : h("p", {}, token.raw.trimEnd());
}

/** The nodes and texts of a line. */
function inline(tokens) {
  return tokens.map((token) => (Object.hasOwn(INLINES, token.type) ? INLINES[token.type](token) : token.raw));
}

function inlineOf(token) {
  return token.tokens ? inline(token.tokens) : [decoded(token.text)];
}

function list(token) {
  const items = token.items.map((item) => h("li", {}, ...item.tokens.map(itemPart)));
  if (!token.ordered) return h("ul", {}, ...items);
  return h("ol", { start: Number(token.start) || 1 }, ...items);
}

function itemPart(token) {
  return token.type === "checkbox" ? INLINES.checkbox(token) : block(token);
}

function table(token) {
  const cell = (tag) => (content, at) =>
    h(tag, { "data-align": token.align[at] ?? undefined }, ...inline(content.tokens));
  const head = h("thead", {}, h("tr", {}, ...token.header.map(cell("th"))));
  const rows = token.rows.map((row) => h("tr", {}, ...row.map(cell("td"))));
  const whole = h("table", {}, head, h("tbody", {}, ...rows));
  return h("div.scrolled", { tabIndex: 0, role: "group", "aria-label": "Table" }, whole);
}

function codeBlock(text, language) {
  const copy = h("button.link", { type: "button", onclick: () => copyText(text) }, "Copy");
  const head = h("div.code-head", {}, h("span", {}, language || "code"), copy);
  return h("div.code", {}, head, h("pre", { tabIndex: 0 }, h("code", {}, text)));
}

/** A link, or only its text if it leads anywhere else than to the web or to mail. */
function link(href, ...content) {
  const address = URL.canParse(href) ? new URL(href) : null;
  if (!address || !SCHEMES.includes(address.protocol)) return h("span", {}, ...content);
  const properties = {
    href: address.href,
    target: "_blank",
    rel: "noopener noreferrer",
    title: address.href,
  };
  return h("a", properties, ...content);
}

/** A text with its character references as characters; marked leaves them to a browser's HTML parser. */
function decoded(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w+));/gi, (whole, decimal, hex, name) => {
    const code = decimal ? Number(decimal) : hex ? parseInt(hex, 16) : null;
    if (code === null) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : whole;
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}
