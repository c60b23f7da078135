// What a person does with the chat page, each scenario in a browser of its own.
//   node page.mjs SCENARIO URL CHROMIUM
// The server's replies depend on words of the last message: see tests/server/routes/test_page_in_browser.py.
// Prints what a scenario returns, as JSON; fails with the assertion that did not hold.
import { Browser } from "./browser.mjs";
import * as conversations from "./page/conversations.mjs";
import * as everybody from "./page/everybody.mjs";
import * as laws from "./page/laws.mjs";
import * as requests from "./page/requests.mjs";
import * as turns from "./page/turns.mjs";

const SCENARIOS = { ...conversations, ...everybody, ...laws, ...requests, ...turns };

const [scenario, url, executable] = process.argv.slice(2);
const browser = await Browser.start(executable, url);
try {
  console.log(JSON.stringify((await SCENARIOS[scenario](browser)) ?? null));
} catch (error) {
  await browser.abandon();
  throw error;
}
await browser.close();
