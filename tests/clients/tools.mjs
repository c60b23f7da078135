// Tools, structured output and an abort with OpenAI's own JavaScript client.
// Prints one JSON object: what was called, what was parsed, how a stream was ended.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "-", maxRetries: 0 });
const model = "tgi";
const messages = [{ role: "user", content: "How is the weather in Paris?" }];
const parameters = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

const called = [];
const runner = client.chat.completions.runTools({
  model,
  messages,
  max_tokens: 60,
  temperature: 0,
  tool_choice: { type: "function", function: { name: "get_weather" } },
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "The weather in a city.",
        parameters,
        parse: JSON.parse,
        function: (given) => {
          called.push(given);
          return "21 C and sunny";
        },
      },
    },
  ],
});
const results = [];
runner.on("functionToolCallResult", (result) => results.push(result));
await runner.done();

const streamed = client.chat.completions.stream({
  model,
  messages,
  max_tokens: 60,
  tool_choice: "required",
  parallel_tool_calls: false,
  tools: [{ type: "function", function: { name: "get_weather", parameters } }],
});
const fragments = [];
streamed.on("tool_calls.function.arguments.delta", (event) => fragments.push(event.arguments_delta));
const call = (await streamed.finalChatCompletion()).choices[0].message.tool_calls[0];

const parsed = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 60,
  response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema: parameters } },
});

const controller = new AbortController();
let aborted = null;
try {
  const stream = await client.chat.completions.create(
    { model, messages, stream: true, max_tokens: 800, ignore_eos: true },
    { signal: controller.signal },
  );
  let heard = 0;
  for await (const _ of stream) if (++heard === 3) controller.abort();
  aborted = heard;
} catch (caught) {
  aborted = caught.constructor.name;
}

console.log(
  JSON.stringify({
    called,
    results,
    arguments: call.function.arguments,
    fragments: fragments.join(""),
    parsed: parsed.choices[0].message.content,
    aborted,
  }),
);
