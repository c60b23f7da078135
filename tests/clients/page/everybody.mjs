// The page in both themes, on a phone, with a screen reader and without a mouse.
import assert from "node:assert/strict";
import { accessible, ended, parts, say, set, shown } from "../browser.mjs";

/** Both themes and a phone's width: nothing is wider than the page, and axe finds nothing. */
export async function looks(browser) {
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1280, 390]) {
      const page = await browser.open({ colorScheme, viewport: { width, height: 844 } });
      const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      assert.equal(Number(paper.match(/\d+/)[0]) < 128, colorScheme === "dark", paper);
      await accessible(page, `an empty page, ${colorScheme}, ${width}`);
      await set(page, { "Colour tokens by probability": true });
      await accessible(page, `settings, ${colorScheme}, ${width}`);
      assert.equal(await excess(page, "#settings"), 0, `settings, ${colorScheme}, ${width}`);
      await parts(page).button("Hide settings").click();
      await say(page, "plain");
      await set(page, { "Colour tokens by probability": false });
      await parts(page).button("Hide settings").click();
      await say(page, "wide");
      await say(page, "markdown");
      await accessible(page, `a conversation, ${colorScheme}, ${width}`);
      await parts(page).button("Copy as code").click();
      await accessible(page, `the code, ${colorScheme}, ${width}`);
      for (const box of ["html", "#transcript"]) {
        assert.equal(await excess(page, box), 0, `${box}, ${colorScheme}, ${width}`);
      }
      await page.context().close();
    }
  }
  const page = await browser.open({ colorScheme: "light" });
  await set(page, { Colours: "dark" });
  await page.reload();
  await page.getByText("context of").waitFor();
  const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.ok(Number(paper.match(/\d+/)[0]) < 128, paper);
}

/** Everything without a mouse. */
export async function keyboard(browser) {
  const page = await browser.open();
  const { replies } = parts(page);
  await page.keyboard.type("first");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("line");
  await page.keyboard.press("Enter");
  await shown(page, "Reply 1 to first line").waitFor();
  await ended(page);
  await reach(page, "Retry", "Shift+Tab");
  await page.keyboard.press("Enter");
  await shown(page, "Reply 2 to first line").waitFor();
  await ended(page);
  await reach(page, "Edit message", "Shift+Tab");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Escape");
  assert.equal(await replies.count(), 1);
  await reach(page, "Settings", "Shift+Tab");
  await page.keyboard.press("Enter");
  assert.equal(await focused(page), "Hide settings");
  await page.keyboard.press("Escape");
  assert.equal(await focused(page), "Settings");
  await reach(page, "Copy as code", "Shift+Tab");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Escape");
  assert.equal(await focused(page), "Copy as code");
  await page.reload();
  await page.getByText("context of").waitFor();
  await page.keyboard.type("plain");
  await page.keyboard.press("Enter");
  await shown(page, "Plain.").waitFor();
}

/** By how many pixels the content of a box is wider than the box. */
async function excess(page, box) {
  return page.locator(box).evaluate((element) => element.scrollWidth - element.clientWidth);
}

async function focused(page) {
  return page.evaluate(
    () => document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent,
  );
}

/** Presses a key until the focus is on a control of this name. */
async function reach(page, name, key) {
  for (let presses = 0; presses < 60; presses++) {
    if ((await focused(page)) === name) return;
    await page.keyboard.press(key);
  }
  assert.fail(`${key} does not reach ${name}`);
}
