// The Responses API with OpenAI's own JavaScript client: streamed, by its helper, whole, and a call returned.
// Prints one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "-", maxRetries: 0 });
const body = {
  model: "tgi",
  instructions: "You are a helpful assistant.",
  input: "What is the capital of France?",
  temperature: 0,
  max_output_tokens: 40,
};

let text = "";
const kinds = [];
for await (const event of await client.responses.create({ ...body, stream: true })) {
  if (kinds.at(-1) !== event.type) kinds.push(event.type);
  if (event.type === "response.output_text.delta") text += event.delta;
}
const folded = await client.responses.stream(body).finalResponse();
const whole = await client.responses.create(body);

const tools = [
  {
    type: "function",
    name: "get_weather",
    strict: true,
    parameters: {
      type: "object",
      properties: { city: { enum: ["Paris", "Rome"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
];
const question = { role: "user", content: "How is the weather in Paris?" };
const called = await client.responses.create({
  ...body,
  input: [question],
  tools,
  tool_choice: { type: "function", name: "get_weather" },
});
const [call] = called.output;
const returned = await client.responses.create({
  ...body,
  input: [question, ...called.output, { type: "function_call_output", call_id: call.call_id, output: "21 C" }],
  tools,
});

console.log(
  JSON.stringify({
    text,
    kinds,
    folded: folded.output_text,
    whole: whole.output_text,
    usage: whole.usage,
    call,
    returned: returned.status,
  }),
);
