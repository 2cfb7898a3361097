// Opens pages of the built book in headless Chromium and prints what is wrong, one line of JSON for each page and view.
//
//   CHROMIUM=/usr/bin/chromium node check.mjs HTML_DIR PAGE ...       PAGE below HTML_DIR: book/index.html
//
// Each page is opened light and dark, as wide as a desktop and as a phone. No request leaves the machine: what a page
// asks of a CDN is answered from node_modules; asking for anything else is a fault.
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const MODULES = fileURLToPath(new URL("node_modules", import.meta.url));
const VIEWS = [1280, 390].flatMap((width) => ["light", "dark"].map((theme) => ({ width, theme })));
const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".png": "image/png",
  ".webp": "image/webp",
  ".woff2": "font/woff2",
};
const CDN = [
  [/\/npm\/mathjax@3\/([^?]*)/, "mathjax"],
  [/\/npm\/@jupyter-widgets\/html-manager@[^/]*\/([^?]*)/, "@jupyter-widgets/html-manager"],
];
const AXE = fs.readFileSync(path.join(MODULES, "axe-core/axe.min.js"), "utf8");
const PATIENCE = Number(process.env.PATIENCE ?? 15_000); // milliseconds, for what should come at once

function serve(folder) {
  const server = http.createServer((request, response) => {
    const file = path.join(folder, decodeURIComponent(new URL(request.url, "http://x").pathname));
    fs.readFile(file, (error, data) => {
      response.writeHead(error ? 404 : 200, { "content-type": TYPES[path.extname(file)] ?? "application/octet-stream" });
      response.end(error ? "" : data);
    });
  });
  return new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(server)));
}

function answer(route, base, faults) {
  const url = route.request().url();
  if (url.startsWith(base)) return route.continue();
  for (const [pattern, name] of CDN) {
    const found = url.match(pattern);
    if (found) return route.fulfill({ path: path.join(MODULES, name, found[1]) });
  }
  faults.push(`asks the network for ${url}`);
  return route.abort();
}

// In the page: formulas are typeset, sliders drawn and pictures loaded. What never comes is reported by the checks below.
function settled() {
  return (
    [...document.querySelectorAll(".math")].every((math) => math.querySelector("mjx-container")) &&
    document.querySelectorAll(".noUi-handle").length >= document.querySelectorAll("script[type*='widget-view']").length &&
    [...document.images].every((image) => image.complete)
  );
}

// In the page: faults that can be seen without touching anything.
function looks(theme) {
  const faults = [];
  for (const image of document.images) {
    const name = `image ${(image.getAttribute("src") ?? "").slice(0, 60)}`;
    if (!image.alt.trim()) faults.push(`${name} has no alt text`);
    if (!image.naturalWidth) faults.push(`${name} is not loaded`);
  }
  for (const math of document.querySelectorAll(".math")) {
    if (!math.querySelector("mjx-container")) faults.push(`not typeset: ${math.textContent.slice(0, 60)}`);
  }
  for (const error of document.querySelectorAll("mjx-merror, [data-mjx-error]")) {
    faults.push(`mathematics: ${error.getAttribute("data-mjx-error") ?? error.textContent.slice(0, 60)}`);
  }
  const shown = document.documentElement.dataset.theme;
  if (shown !== theme) faults.push(`the theme is "${shown}" for a reader who wants ${theme}`);
  const [wide, room] = [document.documentElement.scrollWidth, window.innerWidth];
  if (wide > room + 1) {
    const beyond = [...document.querySelectorAll("article *, body > *")].filter(
      (e) => e.getBoundingClientRect().right > room + 1,
    );
    faults.push(`scrolls sideways, ${wide} pixels in ${room}, for instance ${beyond[0]?.outerHTML.slice(0, 120)}`);
  }
  return faults;
}

// Pixels of the picture that belongs to a slider: the first visible image in the smallest box that holds both. While
// pictures play, the one that was found may be gone before it is taken: then look again.
async function picture(handle, tries = 20) {
  const image = await handle.evaluateHandle((element) => {
    let box = element;
    while (box && !box.querySelector("img")) box = box.parentElement;
    return [...(box?.querySelectorAll("img") ?? [])].find((candidate) => candidate.getClientRects().length);
  });
  try {
    return await image.asElement()?.screenshot();
  } catch (error) {
    if (tries > 1 && /not attached|not visible/.test(error.message)) return picture(handle, tries - 1);
    throw error;
  }
}

async function changes(page, handle, before) {
  for (let waited = 0; waited < PATIENCE; waited += 100) {
    const after = await picture(handle);
    if (!after || !before.equals(after)) return Boolean(after);
    await page.waitForTimeout(100);
  }
  return false;
}

async function sliders(page) {
  const faults = [];
  const handles = await page.$$(".noUi-handle, article input[type=range]");
  const views = await page.$$("script[type*='widget-view']");
  if (handles.length < views.length) faults.push(`${views.length} widgets, but ${handles.length} sliders`);
  for (const [number, handle] of handles.entries()) {
    const value = (name) => handle.evaluate((e, name) => Number(e.getAttribute(`aria-value${name}`)), name);
    await handle.focus(); // now, so that the mark of the focus is in both pictures
    const before = await picture(handle);
    if (!before) {
      faults.push(`slider ${number} has no picture`);
      continue;
    }
    await handle.press((await value("now")) < (await value("max")) ? "ArrowRight" : "ArrowLeft");
    if (!(await changes(page, handle, before))) faults.push(`slider ${number} does not change its picture`);
  }
  return faults;
}

// The buttons that play: pressed, the picture changes with no further key.
async function players(page) {
  const faults = [];
  for (const [number, button] of (await page.$$(".widget-hslider .play-pictures")).entries()) {
    const handle = await button.evaluateHandle((e) => e.parentElement.querySelector(".noUi-handle"));
    await handle.press("Home");
    await page.waitForTimeout(200);
    const before = await picture(handle);
    await button.press("Enter");
    if (!(await changes(page, handle, before))) faults.push(`play button ${number} does not change its picture`);
    await button.press("Enter");
  }
  return faults;
}

// A moving picture stands still for readers who ask for less motion, until they press its button.
async function motion(page) {
  const image = await page.$("picture.moving img");
  if (!image) return [];
  const shown = () => image.evaluate((e) => e.currentSrc);
  const moving = await shown();
  await page.emulateMedia({ reducedMotion: "reduce" });
  await page.waitForTimeout(200);
  const still = await shown();
  await page.press("picture.moving + button", "Enter");
  await page.waitForTimeout(200);
  const again = await shown();
  if (still !== moving && again.startsWith(moving)) return [];
  return [`the moving picture shows ${moving}, with less motion ${still}, after its button ${again}`];
}

// In the page: drop what makes axe-core slow and tells it nothing. Formulas are MathJax's own; of the tokens in code one
// of each kind is enough, as contrast depends on the kind.
function thin() {
  document.querySelectorAll("mjx-container").forEach((formula) => formula.remove());
  const seen = new Set();
  for (const token of document.querySelectorAll(".highlight pre span")) {
    const kind = `${token.className} ${token.closest(".cell_output") !== null}`;
    if (seen.has(kind)) token.remove();
    seen.add(kind);
  }
}

// What axe-core calls serious or critical.
async function access(page) {
  await page.evaluate(thin);
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => axe.run({ resultTypes: ["violations"], preload: false }));
  const example = ({ html, target, any }) => `${html.slice(0, 150)} at ${target}: ${any[0]?.message ?? ""}`;
  return violations
    .filter((rule) => ["serious", "critical"].includes(rule.impact))
    .map((rule) => `${rule.id}: ${rule.help}; ${rule.nodes.length} times, as in ${example(rule.nodes[0])}`);
}

async function found(page, name) {
  const word = name.split("?q=")[1];
  const link = page.locator("#search-results li a").first();
  const seen = await link.waitFor({ timeout: PATIENCE }).then(() => true, () => false);
  return seen ? [] : [`search finds nothing for "${word}"`];
}

async function check(browser, base, name, { width, theme }) {
  const faults = [];
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme: theme });
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && faults.push(`console: ${message.text()}`));
  page.on("response", (response) => response.status() >= 400 && faults.push(`${response.status()} ${response.url()}`));
  await page.route("**/*", (route) => answer(route, base, faults));
  await page.goto(base + name);
  await page.waitForFunction(settled, null, { timeout: PATIENCE }).catch(() => {});
  if (name.includes("?q=")) faults.push(...(await found(page, name)));
  faults.push(...(await page.evaluate(looks, theme)));
  faults.push(...(await sliders(page)));
  if (width > 1000) faults.push(...(await players(page)), ...(await motion(page)));
  faults.push(...(await access(page)));
  await page.close();
  return [...new Set(faults)];
}

const [folder, ...pages] = process.argv.slice(2);
const server = await serve(folder);
const base = `http://127.0.0.1:${server.address().port}/`;
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
});
for (const page of pages) {
  for (const view of VIEWS) {
    console.log(JSON.stringify({ page, ...view, faults: await check(browser, base, page, view) }));
  }
}
await browser.close();
server.close();
