// A headless Chromium on the chat page that keeps a record of what a good page never does: it asks another
// host, breaks its content security policy, or writes an error to the console.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

// The browser's own line for a refused request, which the page shows to its user.
const REFUSED = "Failed to load resource: the server responded with a status of";
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export class Browser {
  #chromium;
  #url;
  #faults = [];

  static async start(executablePath, url) {
    const browser = new Browser();
    browser.#url = url;
    browser.#chromium = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
    return browser;
  }

  /** The page in a fresh profile; `prepare` runs in it first; `loaded`: waits until it knows its model. */
  async open({ loaded = true, prepare = () => {}, ...options } = {}) {
    const profile = { viewport: { width: 1280, height: 800 }, ...options };
    const context = await this.#chromium.newContext(profile);
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    const page = await context.newPage();
    await page.addInitScript(prepare);
    page.setDefaultTimeout(15_000);
    this.#watch(page);
    await page.goto(this.#url);
    if (loaded) await page.getByText("context of").waitFor();
    return page;
  }

  /** Ends it; throws if any page was at fault. */
  async close() {
    await this.#chromium.close();
    assert.deepEqual(this.#faults, []);
  }

  /** Ends it after a failed test. */
  async abandon() {
    await this.#chromium.close();
  }

  #watch(page) {
    const origin = new URL(this.#url).origin;
    page.on("request", (request) => {
      if (!/^(data|blob):/.test(request.url()) && new URL(request.url()).origin !== origin) {
        this.#faults.push(`request to ${request.url()}`);
      }
    });
    page.on("pageerror", (error) => this.#faults.push(String(error)));
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type()) && !message.text().startsWith(REFUSED)) {
        this.#faults.push(`${message.type()}: ${message.text()}`);
      }
    });
  }
}

/** The parts of the page by what a person or a screen reader calls them. */
export function parts(page) {
  const button = (name, options) => page.getByRole("button", { name, exact: true, ...options });
  return {
    button,
    message: page.getByLabel("Message", { exact: true }),
    replies: page.getByRole("article", { name: "Reply" }),
    mine: page.getByRole("article", { name: "You" }),
    field: (name) => page.getByLabel(name, { exact: true }),
  };
}

/** Writes a message; waits for the end of its reply unless `wait` is false. */
export async function say(page, text, { wait = true } = {}) {
  const { message, replies } = parts(page);
  const before = await replies.count();
  await message.fill(text);
  await message.press("Enter");
  await replies.nth(before).waitFor();
  if (wait) await ended(page);
}

/** Waits until the last reply has ended. */
export async function ended(page) {
  await page.locator(".reply[aria-busy=false]").last().waitFor();
  await page.locator("#send").waitFor();
}

/** A text among the turns. */
export function shown(page, text) {
  return page.locator("#turns").getByText(text);
}

/** Opens the settings and fills some fields by their labels. */
export async function set(page, values) {
  const { button, field } = parts(page);
  if (!(await page.locator("#settings").isVisible())) await button("Settings").click();
  for (const details of await page.locator("#settings details").all()) {
    await details.evaluate((element) => (element.open = true));
  }
  for (const [name, value] of Object.entries(values)) {
    const control = field(name);
    if (typeof value === "boolean") await control.setChecked(value);
    else if ((await control.evaluate((element) => element.tagName)) === "SELECT")
      await control.selectOption(value);
    else await control.fill(value);
  }
}

/** Fails if axe finds a rule of WCAG 2.2 AA or a best practice broken. */
export async function accessible(page, what) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const found = violations.map(
    ({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 200)).join("; ")}`,
  );
  assert.deepEqual(found, [], what);
}
