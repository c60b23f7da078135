// The open conversation: what a user does with it, and the reply that is running.
//
// One reply runs at a time. Every change is written to the store. Turns that a retry or an edit removes
// come back with Undo.

import { newReply, openCalls, titleOf } from "./conversation.js";
import { generate } from "./generation.js";
import { announce, notify } from "./notice.js";

const SAVE_EVERY = 1000; // milliseconds, while a reply runs

export class Session {
  #api;
  #store;
  #makeBody;
  #hooks;
  #conversation = null;
  #running = null; // { stopper, ended }

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./store.js").Store} store
   * @param {(turns: Object[]) => Object} makeBody of the request; throws SettingError.
   * @param {Object} hooks `changed(conversation)` for other turns, `grew()` for more of the last one,
   *   `ended(conversation)` after the last of it, `busy(running)`, `refused(error)` for a setting that cannot
   *   be used.
   */
  constructor(api, store, makeBody, hooks) {
    this.#api = api;
    this.#store = store;
    this.#makeBody = makeBody;
    this.#hooks = hooks;
  }

  get conversation() {
    return this.#conversation;
  }

  /** Opens a conversation; a running reply ends with what it has. */
  async open(conversation) {
    await this.stop();
    this.#conversation = conversation;
    for (const turn of conversation.turns) {
      if (turn.state === "running") turn.state = "stopped"; // the page was closed in the middle of it
    }
    this.#hooks.changed(conversation);
  }

  /** Says something. Calls of tools that nobody has answered get empty results. */
  async send(text) {
    const results = openCalls(this.#turns).map((call) => ({ call, content: "" }));
    await this.#continue([...this.#turns, ...results.map(toTurn), { role: "user", content: text }]);
  }

  /** Returns the results of tools. */
  async answer(results) {
    await this.#continue([...this.#turns, ...results.map(toTurn)]);
  }

  /** Changes a turn's text; a user's turn is answered again. */
  async edit(turn, text) {
    const at = this.#turns.indexOf(turn);
    if (turn.role === "user") {
      await this.#continue([...this.#turns.slice(0, at), { role: "user", content: text }]);
    } else {
      this.#replace(this.#turns.with(at, { ...turn, content: text, tokens: [] }));
    }
  }

  /** Generates a reply again. */
  async retry(turn) {
    await this.#continue(this.#turns.slice(0, this.#turns.indexOf(turn)));
  }

  /** Ends the running reply, and waits until it has ended. */
  async stop() {
    this.#running?.stopper.abort();
    await this.#running?.ended;
  }

  get #turns() {
    return this.#conversation.turns;
  }

  /** Puts these turns in place of the present ones, and generates the next. */
  async #continue(turns) {
    while (this.#running) await this.stop(); // no `await` if nothing runs: two replies must not start at once
    const body = this.#bodyFor(turns);
    if (!body) return;
    const reply = newReply();
    this.#replace([...turns, reply]);
    const stopper = new AbortController();
    const running = { stopper, ended: this.#generate(this.#conversation, reply, body, stopper.signal) };
    this.#running = running;
    this.#hooks.busy(true);
    await running.ended;
    if (this.#running === running) this.#running = null;
    this.#hooks.busy(this.#running !== null);
  }

  /** The request's body; null if a setting cannot be used. */
  #bodyFor(turns) {
    try {
      return this.#makeBody(turns);
    } catch (error) {
      this.#hooks.refused(error);
      return null;
    }
  }

  /** Fills a reply. */
  async #generate(conversation, reply, body, signal) {
    let saved = performance.now();
    await generate(this.#api.chat(body, signal), reply, signal, () => {
      this.#hooks.grew();
      if (performance.now() - saved < SAVE_EVERY) return;
      saved = performance.now();
      this.#store.save(conversation);
    });
    this.#keep(conversation);
    if (conversation === this.#conversation) this.#hooks.ended(conversation);
    if (!reply.error) announce(reply.content || "The reply is complete."); // an error is an alert
  }

  /** Puts turns in place of the present ones. */
  #replace(turns) {
    const conversation = this.#conversation;
    const before = conversation.turns;
    conversation.turns = turns;
    this.#keep(conversation);
    this.#hooks.changed(conversation);
    const removed = before.filter((turn) => !turns.includes(turn)).length;
    if (removed) this.#offerUndo(conversation, before, removed);
  }

  #offerUndo(conversation, before, removed) {
    const run = async () => {
      await this.stop();
      conversation.turns = before;
      this.#keep(conversation);
      await this.open(conversation);
    };
    notify(removed === 1 ? "One turn was replaced." : `${removed} turns were replaced.`, {
      label: "Undo",
      run,
    });
  }

  #keep(conversation) {
    conversation.changed = Date.now();
    conversation.title = titleOf(conversation);
    this.#store.save(conversation);
  }
}

function toTurn({ call, content }) {
  return { role: "tool", call: call.id, name: call.name, content };
}
