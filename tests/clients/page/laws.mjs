// Laws of single modules, over inputs that are drawn from the pieces that matter to them.
import assert from "node:assert/strict";

const MARKS =
  "# |\n|\n\n|- |1. |> |    |```|`|*|**|_|~~|[|](|)|![|[ ] |[a]|\\|---|\t| |word|é😀|<|>|&lt;|&#60;";
const PIECES = [
  ...MARKS.split("|"),
  "|",
  "| a | b |\n|---|---|\n",
  "[a]: https://e.x\n",
  "](https://e.x/i.png)",
  "](data:text/html,<script>)",
  "https://e.x",
  "javascript:alert(1)",
  "<img src=x onerror=alert(1)>",
  "<svg/onload=x>",
  "<a href='javascript:x'>",
  "<script>",
  "</script>",
];
const BLOCKS = "h2 h3 h4 h5 h6 p blockquote div pre hr ul ol li table thead tbody tr th td";
const INLINE = "span strong em del code br a input button";

/** Whatever the text is, only known elements come of it; and a text that grew looks as if it came at once. */
export async function anyMarkdown(browser) {
  const page = await browser.open();
  const draw = drawing(1);
  const texts = Array.from({ length: 400 }, () =>
    Array.from({ length: 1 + draw(30) }, () => PIECES[draw(PIECES.length)]),
  );
  const found = await page.evaluate(
    async ({ texts, allowed }) => {
      const { MarkdownView } = await import("/page/markdown.js");
      const harmful = (element) =>
        !allowed.includes(element.localName) ||
        element.getAttributeNames().some((name) => name.startsWith("on")) ||
        (element.localName === "a" && !/^(https?|mailto):/.test(element.protocol));
      const faults = [];
      for (const pieces of texts) {
        const growing = new MarkdownView();
        pieces.forEach((_, at) => growing.update(pieces.slice(0, at + 1).join("")));
        const whole = new MarkdownView();
        whole.update(pieces.join(""));
        const { element } = whole;
        if (
          growing.element.outerHTML !== element.outerHTML ||
          [...element.querySelectorAll("*")].some(harmful)
        ) {
          faults.push([pieces.join(""), element.outerHTML, growing.element.outerHTML]);
        }
      }
      return faults;
    },
    { texts, allowed: `${BLOCKS} ${INLINE}`.split(" ") },
  );
  assert.deepEqual(found, []);
}

/** Events are the same however their bytes are divided. */
export async function anyDivision(browser) {
  const page = await browser.open();
  const draw = drawing(2);
  const streams = Array.from({ length: 100 }, () => {
    const data = Array.from({ length: 1 + draw(5) }, (_, at) =>
      JSON.stringify({ at, text: PIECES[draw(PIECES.length)] }),
    );
    return {
      data,
      end: ["\n\n", "\r\n\r\n"][draw(2)],
      sizes: Array.from({ length: 400 }, () => 1 + draw(9)),
    };
  });
  const found = await page.evaluate(async (streams) => {
    const { readEvents } = await import("/page/events.js");
    const read = [];
    for (const { data, end, sizes } of streams) {
      let bytes = new TextEncoder().encode(data.map((each) => `: comment${end}data: ${each}${end}`).join(""));
      const body = new ReadableStream({
        pull(controller) {
          const size = sizes.shift();
          controller.enqueue(bytes.slice(0, size));
          bytes = bytes.slice(size);
          if (!bytes.length) controller.close();
        },
      });
      const events = [];
      for await (const each of readEvents(body)) events.push(each);
      read.push(events);
    }
    return read;
  }, streams);
  assert.deepEqual(
    found,
    streams.map(({ data }) => data),
  );
}

/** A function that draws a whole number below a bound: the same ones for the same seed. */
function drawing(seed) {
  let state = seed;
  return (bound) => (state = (state * 48271) % 0x7fffffff) % bound;
}
