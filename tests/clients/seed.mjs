// The seed example with OpenAI's own JavaScript client: only base_url and key are ours.
// Prints one JSON object: the text, the chunks' kinds, and what the stream helper folds them to.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "-" });
const body = {
  model: "tgi",
  messages: [
    { role: "system", content: "You are a helpful assistant." },
    { role: "user", content: "What is the capital of France?" },
  ],
  temperature: 0,
  max_tokens: 40,
};

let text = "";
let roles = 0;
const finishes = [];
for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
  const choice = chunk.choices[0];
  text += choice.delta.content ?? "";
  roles += choice.delta.role ? 1 : 0;
  if (choice.finish_reason) finishes.push(choice.finish_reason);
}

const folded = await client.chat.completions.stream(body).finalChatCompletion();
const whole = await client.chat.completions.create(body);
let error = null;
try {
  await client.chat.completions.create({ ...body, model: "nobody" });
} catch (caught) {
  error = { status: caught.status, code: caught.code, name: caught.constructor.name };
}

const controller = new AbortController();
let heard = 0;
for await (const _ of await client.chat.completions.create(
  { ...body, stream: true, max_tokens: 500, ignore_eos: true },
  { signal: controller.signal },
)) {
  if (++heard === 3) break;
}

console.log(
  JSON.stringify({
    text,
    roles,
    finishes,
    folded: folded.choices[0].message.content,
    whole: whole.choices[0].message.content,
    usage: whole.usage,
    error,
    heard,
  }),
);
