// The same request as a program: for curl, Python and JavaScript. A key is never written out.

const KEY = "DISTAFF_API_KEY";

/** The parameters that OpenAI's Python client names; it takes others in `extra_body`. */
const NAMED = new Set([
  ...["model", "messages", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty"],
  ...["seed", "logit_bias", "stop", "response_format", "tools", "tool_choice", "reasoning_effort"],
  ...["logprobs", "top_logprobs"],
]);

/** Each language's name and its program, from the API's address and a request's body. */
export const LANGUAGES = { curl, Python: python, JavaScript: javascript };

function curl(address, body) {
  const quoted = JSON.stringify({ ...body, stream: true }, null, 2).replaceAll("'", "'\\''");
  return [
    `curl -N '${address}chat/completions' \\`,
    `  -H "authorization: Bearer \${${KEY}:--}" \\`,
    "  -H 'content-type: application/json' \\",
    `  -d '${quoted}'`,
  ].join("\n");
}

function python(address, body) {
  const own = Object.entries(body).filter(([name]) => NAMED.has(name));
  const extra = Object.entries(body).filter(([name]) => !NAMED.has(name));
  const all = extra.length ? [...own, ["extra_body", Object.fromEntries(extra)]] : own;
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(address)}, api_key=os.environ.get("${KEY}", "-"))`,
    "stream = client.chat.completions.create(",
    ...all.map(([name, value]) => `    ${name}=${toPython(value, "    ")},`),
    "    stream=True,",
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
  ].join("\n");
}

function javascript(address, body) {
  const sent = JSON.stringify({ ...body, stream: true }, null, 2);
  return [
    'import OpenAI from "openai";',
    "",
    `const client = new OpenAI({ baseURL: ${JSON.stringify(address)}, apiKey: process.env.${KEY} ?? "-" });`,
    `const stream = await client.chat.completions.create(${sent});`,
    "for await (const chunk of stream) {",
    '  process.stdout.write(chunk.choices[0]?.delta.content ?? "");',
    "}",
  ].join("\n");
}

/** A JSON value in Python's words. A string of JSON is one of Python's. */
function toPython(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const deeper = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((item) => toPython(item, deeper))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${toPython(item, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return items.length
    ? `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}`
    : open + close;
}
