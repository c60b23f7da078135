// What leads to a request: settings, the key, a model that is still loading, the request as a program.
import assert from "node:assert/strict";
import { accessible, ended, parts, say, set, shown } from "../browser.mjs";

/** Settings become parameters; what cannot be read is pointed at, and nothing is sent. */
export async function settings(browser) {
  const page = await browser.open();
  const { button, field, replies } = parts(page);
  await set(page, { temperature: "warm" });
  assert.equal(await field("temperature").getAttribute("placeholder"), "0.6");
  assert.equal(await field("top_p").getAttribute("placeholder"), "1");
  await parts(page).message.fill("plain");
  await parts(page).message.press("Enter");
  await page.getByText('temperature: expected a number, got "warm"').waitFor();
  assert.equal(await field("temperature").getAttribute("aria-invalid"), "true");
  assert.equal(await replies.count(), 0);
  const schema = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] };
  await set(page, {
    ...{ temperature: "0.25", top_k: "7", seed: "5", stop: "END\nSTOP", max_tokens: "40", min_tokens: "2" },
    ...{ logit_bias: '{"65": -3}', ignore_eos: "true", "System prompt": "Be brief." },
    ...{
      Format: "json_schema",
      Schema: JSON.stringify(schema),
      "Further parameters": '{"cache_salt": "s"}',
    },
  });
  await page.reload();
  await page.getByText("context of").waitFor();
  await say(page, "json");
  assert.match(await replies.locator(".markdown").textContent(), /^({"a": 1}){5}$/); // it ignores the end
  await set(page, { temperature: "5", ignore_eos: "" });
  await say(page, "json");
  await page.getByText("Invalid 'temperature'").waitFor();
  await button("Reset all settings").click();
  assert.equal(await field("temperature").inputValue(), "");
}

/** The key is asked for when the server wants one, and forgotten with the tab unless it is remembered. */
export async function keys(browser) {
  const page = await browser.open({ loaded: false });
  const { button, field, message, replies } = parts(page);
  const give = async (key) => {
    await field("API key").fill(key);
    await button("Use this key").click();
  };
  await page.locator("#key-reason").getByText("You didn't provide an API key").waitFor();
  await button("Cancel").click();
  await page.locator("#state").getByText("You didn't provide an API key").waitFor();
  await message.fill("kept");
  await message.press("Enter");
  await give("a-wrong-key");
  await page.locator("#key-reason").getByText("Incorrect API key provided").waitFor();
  await accessible(page, "the dialog for the key");
  await give("a-key-that-is-long-enough");
  await page.getByText("context of").waitFor();
  await shown(page, "Reply 1 to kept").waitFor();
  await ended(page);
  await say(page, "plain");
  assert.equal(await replies.last().locator(".markdown").textContent(), "Plain.");
  await page.reload();
  await page.getByText("context of").waitFor();
  const second = await page.context().newPage();
  await second.goto(page.url());
  await second.getByLabel("Remember it").check();
  await second.getByLabel("API key", { exact: true }).fill("a-key-that-is-long-enough");
  await second.getByRole("button", { name: "Use this key" }).click();
  await second.getByText("context of").waitFor();
  const third = await page.context().newPage();
  await third.goto(page.url());
  await third.getByText("context of").waitFor();
  await third.getByRole("button", { name: "Settings", exact: true }).click();
  await third.getByRole("button", { name: "Forget the API key" }).click();
  await third.reload();
  await third.locator("#key-reason").getByText("You didn't provide an API key").waitFor();
}

/** Before the model is loaded the page says so, and sends what is written as soon as it can. */
export async function loading(browser) {
  const page = await browser.open({ loaded: false });
  await page.locator("#state").getByText("The model is not ready").waitFor();
  const { message } = parts(page);
  await message.fill("early");
  await message.press("Enter");
  assert.equal(await message.inputValue(), "early");
  await shown(page, "Reply 1 to early").waitFor();
  assert.equal(await message.inputValue(), "");
}

/** The programs that the page shows, for the test to run; a key is in none of them. */
export async function snippets(browser) {
  const page = await browser.open();
  const { button } = parts(page);
  await page.evaluate(() => sessionStorage.setItem("distaff-key", "a-secret-key"));
  await set(page, { temperature: "0", top_k: "3", skip_special_tokens: "false", stop: 'it\'s\n"END"' });
  await say(page, 'plain "quoted" it\'s $HOME \\ back');
  await page.locator("article.reply").getByRole("button", { name: "Edit reply" }).click();
  await button("Cancel").click();
  await button("Copy as code").click();
  const found = {};
  for (const language of ["curl", "Python", "JavaScript"]) {
    await page.getByText(language, { exact: true }).click();
    await page.locator("#code-copy").click();
    found[language] = await page.evaluate(() => navigator.clipboard.readText());
    assert.ok(!found[language].includes("secret"));
  }
  return found;
}
