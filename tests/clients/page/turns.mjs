// What a person sees of replies: their stream, their text, their parts, their tokens.
import assert from "node:assert/strict";
import { ended, parts, say, set } from "../browser.mjs";

/** Text arrives piece by piece, and the figures stand below it. */
export async function streaming(browser) {
  const page = await browser.open();
  await say(page, "slow", { wait: false });
  const text = page.locator(".reply .markdown");
  const lengths = new Set();
  while (await page.locator("#stop").isVisible()) lengths.add((await text.textContent()).length);
  assert.ok(lengths.size > 3, `the text grew in ${lengths.size} steps`);
  assert.equal(await text.textContent(), "One two three four five six seven eight nine ten.");
  const figures = await page.locator(".figures").textContent();
  assert.match(
    figures,
    /^50 tokens · [\d.]+ tokens\/s · first token \d+\.\d\d s · prompt \d+ tokens, 3 cached$/,
  );
  assert.match(await page.locator("#voice").textContent(), /^One two .* ten\.$/);
}

/** Markdown is built of known elements; all else is text, whoever wrote it. */
export async function markdown(browser) {
  const page = await browser.open();
  await say(page, "markdown <img src=x onerror=globalThis.harmed=1>");
  const reply = page.locator(".reply .markdown");
  assert.equal(await reply.locator("table td").count(), 4);
  assert.deepEqual(await reply.locator("li").allTextContents(), ["one", "two"]);
  assert.equal(await reply.locator("pre code").textContent(), 'print("<b>")');
  assert.equal(await reply.locator("strong").textContent(), "bold & <safe>");
  assert.equal(
    await page.locator("#turns :is(img, script, iframe, svg[onload], [onerror], style)").count(),
    0,
  );
  const whole = await page.locator("#turns").textContent();
  for (const text of ["<img src=x onerror=globalThis.harmed=1>", "<script>globalThis.harmed=1</script>"]) {
    assert.ok(whole.includes(text), text);
  }
  const links = await reply
    .locator("a")
    .evaluateAll((all) => all.map(({ href, rel, target }) => ({ href, rel, target })));
  const rel = "noopener noreferrer";
  assert.deepEqual(links, [
    { href: "https://example.com/a", rel, target: "_blank" },
    { href: "https://example.com/picture.png", rel, target: "_blank" },
  ]);
  assert.ok(whole.includes("bad link") && whole.includes("worse link"));
  assert.equal(await page.evaluate(() => globalThis.harmed), undefined);
  await reply.getByRole("button", { name: "Copy" }).click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'print("<b>")');
}

/** A reply is stopped by its button and by Escape; what has arrived stays. */
export async function stop(browser) {
  const page = await browser.open();
  const { button, replies } = parts(page);
  for (const stop of [() => button("Stop").click(), () => page.keyboard.press("Escape")]) {
    await say(page, "slow", { wait: false });
    await replies.last().getByText("One two").waitFor();
    await stop();
    await ended(page);
    assert.match(await replies.last().textContent(), /One two.*stopped$/);
    assert.doesNotMatch(await replies.last().textContent(), /nine/);
  }
  assert.ok(await parts(page).message.evaluate((element) => element === document.activeElement));
}

/** Reasoning is folded and not part of the reply; the settings turn it off. */
export async function reasoning(browser) {
  const page = await browser.open();
  const { replies } = parts(page);
  await say(page, "think");
  const folded = replies.locator("details.reasoning");
  assert.equal(await folded.locator("pre").isVisible(), false);
  await folded.locator("summary").click();
  assert.equal(await folded.locator("pre").textContent(), "It is four, I think.");
  assert.equal(await replies.locator(".markdown").textContent(), "Four.");
  await set(page, { Effort: "none", "Most tokens of reasoning": "0" });
  await say(page, "think");
}

/** Tokens have the colour of their probability; hover and arrow keys show the alternatives. */
export async function tokens(browser) {
  const page = await browser.open();
  const { button, replies } = parts(page);
  await set(page, { "Colour tokens by probability": true, "Alternatives for each token": "3" });
  await say(page, "plain");
  const tokens = page.getByRole("option");
  assert.equal(await page.getByRole("listbox").textContent(), "Plain.<|257|>");
  assert.equal(await tokens.first().getAttribute("data-level"), "1"); // exp(-0.25) is 0.78
  await tokens.first().hover();
  const alternatives = page.getByRole("tooltip");
  assert.equal(await alternatives.textContent(), "P77.9 %Q28.7 %R10.5 %");
  await tokens.first().focus();
  await page.keyboard.press("ArrowRight");
  assert.match(await alternatives.textContent(), /^l77\.9 %/);
  await page.getByRole("heading", { name: "Settings" }).hover();
  await replies.getByRole("button", { name: "Show tokens by probability" }).click();
  assert.equal(await page.getByRole("listbox").isVisible(), false);
  assert.equal(await replies.locator(".markdown").textContent(), "Plain.");
  await button("Hide settings").click();
}

/** An error in the middle of a stream leaves what has arrived, and a way to try again. */
export async function failure(browser) {
  const page = await browser.open();
  const { replies } = parts(page);
  await say(page, "break");
  assert.equal(await replies.locator(".markdown").textContent(), "Half");
  assert.ok(await replies.getByRole("alert").isVisible());
  assert.ok((await replies.getByRole("alert").textContent()).length > 20);
  assert.ok(await replies.getByRole("button", { name: "Retry" }).isVisible());
}
