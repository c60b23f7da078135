// A conversation as plain data, which is stored as it is, and its form in the API. Nothing here has a view.
//
// A turn has a role. A user's turn has `content`. A reply, of the role assistant, has what `newReply` lists.
// A tool's turn has `call`, the id of the call that it answers, the tool's `name`, and `content`.

const LONGEST_TITLE = 60;

/** A conversation without turns. */
export function newConversation() {
  // randomUUID exists only on pages that HTTPS or this machine serves.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", changed: Date.now(), turns: [] };
}

/** A reply of which nothing has arrived. */
export function newReply() {
  return {
    role: "assistant",
    state: "running", // then "done", "stopped" or "failed", with the reason in `error`
    content: "",
    reasoning: "",
    calls: [], // of tools: { id, name, arguments }
    tokens: [], // with log-probabilities, if they were asked for: { token, logprob, unseen, top }
    finish: null,
    usage: null,
    times: {}, // in seconds from the request: `first` and `last` piece
  };
}

/** What a conversation is called in the list: the beginning of its first question. */
export function titleOf(conversation) {
  const first = conversation.turns.find((turn) => turn.role === "user")?.content ?? "New conversation";
  const line = first.trim().replace(/\s+/g, " ");
  return line.length > LONGEST_TITLE ? `${line.slice(0, LONGEST_TITLE - 1)}…` : line;
}

/** Adds a chunk of the stream to a reply. Returns whether it brought a piece of the reply. */
export function fold(reply, chunk) {
  reply.usage = chunk.usage ?? reply.usage;
  const choice = chunk.choices[0];
  if (!choice) return false;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
  reply.content += content ?? "";
  reply.reasoning += reasoning ?? "";
  for (const part of calls ?? []) foldCall(reply.calls, part);
  reply.tokens.push(...(choice.logprobs?.content ?? []).map(entry));
  reply.finish = choice.finish_reason ?? reply.finish;
  return Boolean(content || reasoning || calls);
}

function foldCall(calls, { index, id, function: called }) {
  calls[index] ??= { id, name: called.name, arguments: "" };
  calls[index].arguments += called.arguments ?? "";
}

/** A token as it is kept; one without bytes, such as the end token, is not part of the text. */
function entry({ token, logprob, bytes, top_logprobs: top }) {
  const others = top.map((other) => ({ token: other.token, logprob: other.logprob }));
  return { token, logprob, unseen: !bytes?.length, top: others };
}

/** The calls of the last reply that no later turn answers. */
export function openCalls(turns) {
  const at = turns.findLastIndex((turn) => turn.role === "assistant");
  const answered = new Set(turns.slice(at + 1).map((turn) => turn.call));
  return (turns[at]?.calls ?? []).filter((call) => !answered.has(call.id));
}

/** The messages of a request. A failed reply without text was never said. */
export function toMessages(turns, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  const said = turns.filter((turn) => turn.role !== "assistant" || turn.content || turn.calls.length);
  return [...messages, ...said.map(toMessage)];
}

function toMessage(turn) {
  if (turn.role === "user") return { role: "user", content: turn.content };
  if (turn.role === "tool") return { role: "tool", tool_call_id: turn.call, content: turn.content };
  const message = { role: "assistant", content: turn.content };
  if (turn.reasoning) message.reasoning_content = turn.reasoning;
  if (turn.calls.length) message.tool_calls = turn.calls.map(toCall);
  return message;
}

function toCall(call) {
  return { id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } };
}
