// From a conversation and the settings to the body of a request. Pure; the settings are as they are typed.

import { toMessages } from "./conversation.js";
import { kindOf, namesOf, valueOf } from "./parameters.js";

const ALTERNATIVES = 5; // for each token, if the user names no number

/** A setting that no request can be made of. */
export class SettingError extends Error {
  /** @param {string} field the name of the setting's field. */
  constructor(field, message) {
    super(`${field}: ${message}`);
    this.field = field;
  }
}

/**
 * The body of a chat completion.
 * @param {string} model
 * @param {Object[]} turns
 * @param {Object} settings by the name of each field; empty ones are left out.
 * @param {Object} defaults of the server, by parameter.
 * @throws {SettingError}
 */
export function toBody(model, turns, settings, defaults) {
  return {
    model,
    messages: toMessages(turns, settings.system ?? ""),
    ...sampling(settings, defaults),
    ...format(settings),
    ...tools(settings),
    ...reasoning(settings),
    ...probabilities(settings),
    ...parsed(settings, "more"),
  };
}

function sampling(settings, defaults) {
  const { main, more } = namesOf(defaults);
  const value = (name) => parsed(settings, name, kindOf(name, defaults[name]));
  return present(Object.fromEntries([...main, ...more].map((name) => [name, value(name)])));
}

function format(settings) {
  if (settings.format === "json_object") return { response_format: { type: "json_object" } };
  if (settings.format !== "json_schema") return {};
  const schema = parsed(settings, "schema");
  if (!schema) throw new SettingError("schema", "expected a JSON schema");
  return { response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } } };
}

function tools(settings) {
  const listed = parsed(settings, "tools");
  return listed ? present({ tools: listed, tool_choice: settings.tool_choice || undefined }) : {};
}

function reasoning(settings) {
  return present({
    reasoning_effort: settings.reasoning_effort || undefined,
    max_reasoning_tokens: parsed(settings, "max_reasoning_tokens", "number"),
  });
}

function probabilities(settings) {
  if (!settings.logprobs) return {};
  return { logprobs: true, top_logprobs: parsed(settings, "top_logprobs", "number") ?? ALTERNATIVES };
}

/** What has a value. */
function present(object) {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined));
}

/** The value of a setting; undefined if nothing is typed. */
function parsed(settings, name, kind = "json") {
  const typed = String(settings[name] ?? "");
  if (!typed.trim()) return undefined;
  try {
    return valueOf(kind, typed);
  } catch (error) {
    throw new SettingError(name, error.message);
  }
}
