// One reply from its request to its end: reads the stream, measures, and says how it ended.

import { fold } from "./conversation.js";

/**
 * Fills a reply. Never throws: what goes wrong is in the reply.
 * @param {AsyncIterable<Object>} chunks of the stream.
 * @param {Object} reply from `newReply`.
 * @param {AbortSignal} signal of the stream.
 * @param {() => void} onChange after each chunk.
 */
export async function generate(chunks, reply, signal, onChange) {
  const started = performance.now();
  try {
    for await (const chunk of chunks) {
      if (fold(reply, chunk)) note(reply.times, (performance.now() - started) / 1000);
      onChange();
    }
    reply.state = "done";
  } catch (error) {
    reply.state = signal.aborted ? "stopped" : "failed";
    if (reply.state === "failed") reply.error = error.message;
  }
}

function note(times, seconds) {
  times.first ??= seconds;
  times.last = seconds;
}

/**
 * The figures of a reply, in words.
 * The rate is of the tokens after the first piece, so the prompt's time is not part of it.
 */
export function figures({ usage, times, finish, state }) {
  const found = usage && times.first !== undefined ? measured(usage, times) : [];
  if (state === "stopped") found.push("stopped");
  else if (finish === "length") found.push("limit of tokens reached");
  return found;
}

function measured(usage, { first, last }) {
  const { completion_tokens: made, prompt_tokens: prompt } = usage;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const rate = last > first && made > 1 ? [`${((made - 1) / (last - first)).toFixed(1)} tokens/s`] : [];
  return [
    `${made} ${made === 1 ? "token" : "tokens"}`,
    ...rate,
    `first token ${first.toFixed(2)} s`,
    `prompt ${prompt} tokens, ${cached} cached`,
  ];
}
