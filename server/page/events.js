// Reads server-sent events: a body of bytes to the data of each event.
// Source: https://html.spec.whatwg.org/#event-stream-interpretation

/**
 * The data of each event, as soon as it is complete.
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* readEvents(body) {
  let rest = "";
  for await (const text of pieces(body)) {
    const events = (rest + text).split(/\r?\n\r?\n/);
    rest = events.pop();
    yield* events.map(dataOf).filter((data) => data !== null);
  }
}

/** The pieces of a body as text. Not every browser can iterate over a stream. */
async function* pieces(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The lines of data in an event, joined; null for an event without data, such as a comment. */
function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.length ? lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n") : null;
}
