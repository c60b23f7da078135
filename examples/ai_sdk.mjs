// Vercel's AI SDK: a streamed text with its reasoning, objects by a schema, and a tool.
//
// Run it with `npm install ai @ai-sdk/openai-compatible zod` and `node ai_sdk.mjs`; DISTAFF_URL names another server.
// Each line that it prints is a name and JSON. A small model may not use the tool's result well.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const model = createOpenAICompatible({
  name: "distaff",
  baseURL: process.env.DISTAFF_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: "-",
  includeUsage: true,
  // Without it the SDK leaves the schema out, and the server holds the reply to JSON only.
  supportsStructuredOutputs: true,
})("tgi");
const settings = { model, temperature: 0, maxOutputTokens: 100 };
const show = (name, value) => console.log(`${name}: ${JSON.stringify(value)}`);

const stream = streamText({ ...settings, prompt: "What does a distaff hold?" });
const pieces = [];
for await (const piece of stream.textStream) pieces.push(piece);
show("pieces", pieces);
show("whole", await stream.text);
show("reasoning", (await stream.reasoningText) ?? "");
show("usage", await stream.usage);

const fibres = z.enum(["wool", "flax", "cotton"]);
const schema = z.object({ fibre: fibres, dyed: z.boolean() });
const described = { ...settings, prompt: "Describe a red woollen yarn." };
const { object } = await generateObject({ ...described, schema });
show("object", object);
// Newer versions of the SDK prefer this to generateObject.
const { output } = await generateText({ ...described, output: Output.object({ schema }) });
show("output", output);

const staple = tool({
  description: "The length of a fibre's staple.",
  inputSchema: z.object({ fibre: fibres }),
  execute: async ({ fibre }) => ({ wool: "10 cm", flax: "70 cm", cotton: "3 cm" })[fibre],
});
const answer = await generateText({
  ...settings,
  tools: { staple },
  // Only the first step must call it.
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "auto" : "required" }),
  stopWhen: stepCountIs(3),
  prompt: "How long is the staple of flax?",
});
show("called", answer.steps.flatMap((step) => step.toolCalls.map((call) => [call.toolName, call.input])));
show("returned", answer.steps.flatMap((step) => step.toolResults.map((result) => result.output)));
show("answer", answer.text);
