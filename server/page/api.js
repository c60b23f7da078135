// The server's API, as far as the page uses it. Knows routes, keys and errors; no conversation and no view.

import { readEvents } from "./events.js";

const DONE = "[DONE]";

/** An error that the server answered, or the reason why there was no answer. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status 0 if there was no answer.
   * @param {number} retryAfter seconds after which the same request may succeed; 0 if it will not.
   */
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class Api {
  #keys;

  /** @param {import("./keys.js").Keys} keys has the key, and asks the user for one. */
  constructor(keys) {
    this.#keys = keys;
  }

  /** The served model, how its parameters are treated, and their defaults. Throws ApiError. */
  async capabilities() {
    const response = await this.#send("v1/capabilities");
    return response.json();
  }

  /**
   * Streams the chunks of a chat completion.
   * @param {Object} body
   * @param {AbortSignal} signal ends it early.
   * @throws {ApiError} for a refusal, and for an error in the middle of the stream.
   */
  async *chat(body, signal) {
    const headers = { "content-type": "application/json" };
    const sent = { method: "POST", headers, body: JSON.stringify(body), signal };
    const response = await this.#send("v1/chat/completions", sent);
    for await (const data of readEvents(response.body)) {
      if (data === DONE) return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, response.status);
      yield chunk;
    }
    throw new ApiError("The connection was lost before the reply was complete.");
  }

  /** The answer to a request; asks for a key as long as the server wants another. Throws ApiError. */
  async #send(path, options = {}) {
    for (;;) {
      const response = await this.#fetch(path, options);
      if (response.ok) return response;
      const error = await errorOf(response);
      if (error.status !== 401 || !(await this.#keys.ask(error.message))) throw error;
    }
  }

  async #fetch(path, options) {
    const headers = { ...options.headers, ...this.#keys.headers() };
    try {
      // Relative to the page, which a proxy may serve under a path of its own.
      return await fetch(new URL(path, document.baseURI), { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ApiError(`The server cannot be reached: ${error.message}`);
    }
  }
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  const text = await response.text();
  return new ApiError(
    messageOf(text) ?? `The server answered ${response.status}.`,
    response.status,
    retryAfter,
  );
}

/** The message in an error's body; undefined for the body of another server, such as a proxy. */
function messageOf(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return undefined;
  }
}
