// The panel of settings: builds the fields of the sampling parameters, keeps what is typed in the browser.

import { byId } from "./dom.js";
import { fieldFor, namesOf } from "./parameters.js";

const NAME = "distaff-settings";

export class Settings {
  #form = byId("settings-form");

  constructor() {
    this.#form.addEventListener("input", () => this.#changed());
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    byId("reset-settings").addEventListener("click", () => {
      this.#form.reset();
      this.#changed();
    });
    this.#fill(stored());
    this.#follow();
  }

  /**
   * Builds what depends on the model.
   * @param {Object} capabilities from the API.
   */
  describe({ defaults, routes, reasoning_format: reasoning, tool_format: toolFormat }) {
    const meanings = Object.fromEntries(
      routes["POST /v1/chat/completions"].map((each) => [each.name, each.meaning]),
    );
    const { main, more } = namesOf(defaults);
    const fields = (names) => names.map((name) => fieldFor(name, defaults[name], meanings[name]));
    byId("sampling").replaceChildren(...fields(main));
    byId("more-sampling").replaceChildren(...fields(more));
    Object.assign(byId("reasoning-settings"), { hidden: !reasoning, disabled: !reasoning });
    byId("tool-format").textContent = toolFormat;
    this.#fill(stored());
  }

  /** What is typed, by the name of each field that this model has. */
  values() {
    const controls = [...this.#form.elements].filter(
      (control) => control.name && !control.matches(":disabled"),
    );
    return Object.fromEntries(controls.map((control) => [control.name, valueIn(control)]));
  }

  /**
   * Shows the field that a request could not be made of.
   * @param {import("./request.js").SettingError} error
   */
  point(error) {
    const control = this.#form.elements[error.field];
    const folded = control.closest("details");
    if (folded) folded.open = true;
    control.setCustomValidity(error.message);
    control.setAttribute("aria-invalid", "true");
    control.focus();
    control.reportValidity();
  }

  #fill(values) {
    for (const control of this.#form.elements) {
      if (!(control.name in values)) continue;
      if (control.type === "checkbox") control.checked = values[control.name];
      else control.value = values[control.name];
    }
  }

  #changed() {
    for (const control of this.#form.elements) {
      control.setCustomValidity?.("");
      control.removeAttribute("aria-invalid");
    }
    localStorage.setItem(NAME, JSON.stringify({ ...stored(), ...this.values() }));
    this.#follow();
  }

  /** What other settings decide: the theme, and which fields are in use. */
  #follow() {
    const { theme, format, logprobs } = this.values();
    document.documentElement.dataset.theme = theme;
    byId("schema-field").hidden = format !== "json_schema";
    byId("alternatives-field").hidden = !logprobs;
  }
}

function valueIn(control) {
  return control.type === "checkbox" ? control.checked : control.value;
}

function stored() {
  return JSON.parse(localStorage.getItem(NAME) ?? "{}");
}
