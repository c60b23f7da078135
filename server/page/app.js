// The page: makes its parts and connects them.

import { Api } from "./api.js";
import { CodeDialog } from "./code_dialog.js";
import { Composer } from "./composer.js";
import { newConversation } from "./conversation.js";
import { byId } from "./dom.js";
import { showHistory } from "./history.js";
import { Keys } from "./keys.js";
import { notify } from "./notice.js";
import { closeCovering, connectPanels, togglePanel } from "./panels.js";
import { SettingError, toBody } from "./request.js";
import { Session } from "./session.js";
import { Settings } from "./settings.js";
import { Store } from "./store.js";
import { Transcript } from "./transcript.js";

const AGAIN = 2; // seconds between questions whether the model is loaded
const HELLO = [{ role: "user", content: "Hello!" }];
const STREAMED = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };

const keys = new Keys();
const api = new Api(keys);
const store = new Store((error) => notify(`The conversation cannot be kept: ${error.message}.`));
const settings = new Settings();
const code = new CodeDialog();
const composer = new Composer({ send: connected(send), stop: () => session.stop() });
const transcript = new Transcript({
  edit: connected((turn, text) => session.edit(turn, text)),
  retry: connected((turn) => session.retry(turn)),
  answer: connected((results) => session.answer(results)),
});
const session = new Session(api, store, (turns) => ({ ...makeBody(turns), ...STREAMED }), {
  changed: show,
  grew: () => transcript.refresh(),
  ended,
  busy: (running) => composer.busy(running),
  refused,
});
let model = null;
let connecting = null;

/** The body of a request with these turns. Throws SettingError. */
function makeBody(turns) {
  return toBody(model.model, turns, settings.values(), model.defaults);
}

function send() {
  const text = composer.take();
  if (text) session.send(text);
}

/** Shows the open conversation. The focus does not get lost with a button that is gone. */
function show(conversation) {
  const held = byId("turns").contains(document.activeElement);
  transcript.show(conversation.turns);
  if (held) composer.focus();
  showList();
}

function ended(conversation) {
  transcript.end(conversation.turns);
  showList();
}

async function showList() {
  showHistory(await store.list(), session.conversation.id, {
    open: async (id) => leave(await store.get(id)),
    remove,
  });
}

/** Opens another conversation. */
async function leave(conversation) {
  closeCovering();
  await session.open(conversation);
  composer.focus();
}

async function remove(id) {
  if (id === session.conversation.id) await session.open(newConversation());
  const conversation = await store.get(id);
  await store.remove(id);
  await showList();
  const run = async () => {
    await store.save(conversation);
    await session.open(conversation);
  };
  notify("The conversation was deleted.", { label: "Undo", run });
}

/** Shows which setting no request can be made of. */
function refused(error) {
  if (!(error instanceof SettingError)) throw error;
  togglePanel("settings", true, false);
  settings.point(error);
  notify(error.message);
}

/** Shows the next request: with what is typed, or else the last one again. */
function showCode() {
  const { turns } = session.conversation;
  const { text } = composer;
  const asked = turns.slice(0, turns.findLastIndex((turn) => turn.role !== "assistant") + 1);
  const next = text.trim() ? [...turns, { role: "user", content: text }] : asked;
  try {
    code.open(makeBody(next.length ? next : HELLO));
  } catch (error) {
    refused(error);
  }
}

/** An action that is done once the model is known, and not without it. */
function connected(act) {
  return async (...given) => {
    if (await connect()) act(...given);
  };
}

/** Asks for the model until it is loaded. Returns whether it is: it is not for a user without a key. */
function connect() {
  if (model) return true;
  connecting ??= ask().finally(() => (connecting = null));
  return connecting;
}

async function ask() {
  while (!model) {
    try {
      model = await api.capabilities();
    } catch (error) {
      byId("state").textContent = error.message;
      if (error.status === 401) return false;
      await new Promise((resolve) => setTimeout(resolve, (error.retryAfter || AGAIN) * 1000));
    }
  }
  settings.describe(model);
  document.title = `${model.model} · Distaff`;
  byId("model").textContent = model.model;
  byId("state").textContent = `context of ${model.max_model_len.toLocaleString("en")} tokens`;
  return true;
}

function forgetKey() {
  keys.forget();
  notify("The key was forgotten.");
}

async function start() {
  connectPanels();
  byId("new").addEventListener("click", () => leave(newConversation()));
  byId("code-open").addEventListener("click", connected(showCode));
  byId("forget-key").addEventListener("click", forgetKey);
  for (const button of byId("examples").children) {
    button.addEventListener("click", () => composer.fill(button.textContent));
  }
  const [last] = await store.list();
  await leave(last ? await store.get(last.id) : newConversation());
  await connect();
}

start();
