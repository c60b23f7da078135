// What a person does with a conversation: edits, answers tools, comes back to it.
import assert from "node:assert/strict";
import { ended, parts, say, set, shown } from "../browser.mjs";

/** A turn is edited, a reply retried; Undo brings back what that removed. */
export async function editing(browser) {
  const page = await browser.open();
  const { button, mine, replies } = parts(page);
  await say(page, "first");
  await say(page, "second");
  assert.equal(await replies.last().locator(".markdown").textContent(), "Reply 2 to second");
  await replies.last().getByRole("button", { name: "Retry" }).click();
  await shown(page, "Reply 3 to second").waitFor();
  await ended(page);
  await button("Undo").click();
  await shown(page, "Reply 2 to second").waitFor();
  await mine.first().getByRole("button", { name: "Edit message" }).click();
  await page.getByLabel("Text of the message").fill("other");
  await button("Send again").click();
  await shown(page, "Reply 4 to other").waitFor();
  assert.deepEqual([await mine.count(), await replies.count()], [1, 1]);
  await ended(page);
  await replies.getByRole("button", { name: "Edit reply" }).click();
  await page.getByLabel("Text of the message").fill("My words");
  await button("Save").click();
  await say(page, "messages");
  return JSON.parse(await replies.last().locator(".markdown").textContent());
}

/** A tool's call is folded; its result is typed, and the model goes on from it. */
export async function tools(browser) {
  const page = await browser.open();
  const { button, replies } = parts(page);
  const parameters = { type: "object", properties: { city: { type: "string" } } };
  const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
  await set(page, { "Functions, as in OpenAI’s API": JSON.stringify(tools) });
  await say(page, "call");
  const call = replies.locator("details.call");
  assert.equal(await call.locator("summary").textContent(), "Calls get_weather");
  assert.equal(await call.locator("pre").isVisible(), false);
  await call.locator("summary").click();
  assert.deepEqual(JSON.parse(await call.locator("pre").textContent()), { city: "Paris" });
  await page.getByLabel("Result of get_weather").fill("21 C and sunny");
  await button("Send result").click();
  await shown(page, "It is: 21 C and sunny").last().waitFor();
  await ended(page);
  assert.equal(await page.getByRole("article", { name: "Tool get_weather" }).count(), 1);
  await page.reload();
  await shown(page, "It is: 21 C and sunny").last().waitFor();
}

/** Conversations survive a reload, are listed, and are deleted for good only after Undo is gone. */
export async function history(browser) {
  const page = await browser.open();
  const { button, replies } = parts(page);
  await say(page, "first");
  await button("New conversation").click();
  assert.equal(await replies.count(), 0);
  await say(page, "second");
  await page.reload();
  await shown(page, "Reply 2 to second").waitFor();
  await button("first").click();
  await shown(page, "Reply 1 to first").waitFor();
  await page.locator("#conversations li").first().hover();
  await button("Delete “second”").click();
  await page.getByText("The conversation was deleted.").waitFor();
  assert.equal(await button("second").count(), 0);
  await button("Undo").click();
  await shown(page, "Reply 2 to second").waitFor();
  await say(page, "slow", { wait: false });
  await shown(page, "One two").waitFor();
  await page.waitForTimeout(1200);
  await page.reload();
  await shown(page, /One two/).waitFor();
  assert.match(await replies.last().textContent(), /stopped$/);
}

/** Without a database in the browser the page works, and says that it keeps nothing. */
export async function unkept(browser) {
  const page = await browser.open({
    prepare: () => Object.defineProperty(globalThis, "indexedDB", { value: null }),
  });
  const { button } = parts(page);
  await say(page, "first");
  await page.getByText("The conversation cannot be kept").waitFor();
  await button("New conversation").click();
  await say(page, "second");
  await button("first").click();
  await shown(page, "Reply 1 to first").waitFor();
  await page.reload();
  await page.getByText("What would you like to ask?").waitFor();
}

/** The bundled model answers. */
export async function model(browser) {
  const page = await browser.open();
  await set(page, { temperature: "0", max_tokens: "24", "Colour tokens by probability": true });
  await say(page, "What is the capital of France?");
  return {
    text: (await page.getByRole("listbox").textContent()).replace(/<\|.*\|>/, ""),
    figures: await page.locator(".figures").textContent(),
  };
}
