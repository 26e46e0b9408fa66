// Opens every page of the built site in Chromium, as a reader would, and lists what is wrong:
//
//   node tools/pages/check_site.mjs site [folder for screenshots]
//
// No errors on the console, no request to another host, no TeX that was not drawn, no missing
// picture, nothing wider than a phone; and the search finds what is there.

import { createServer } from "node:http";
import { mkdir, readFile, readdir } from "node:fs/promises";
import { extname, join } from "node:path";
import { chromium } from "playwright-core";

const [site, shots] = process.argv.slice(2);
const PHONE = { width: 390, height: 844 };
const DESK = { width: 1400, height: 1000 };
const TYPES = {
  ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json",
  ".png": "image/png", ".svg": "image/svg+xml", ".woff2": "font/woff2", ".xml": "text/xml",
};

const server = createServer(async (request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  const path = join(site, decodeURIComponent(pathname), pathname.endsWith("/") ? "index.html" : "");
  try {
    const content = await readFile(path);
    response.writeHead(200, { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream" });
    response.end(content);
  } catch {
    response.writeHead(404).end("not found");
  }
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const home = `http://127.0.0.1:${server.address().port}/`;

async function* pagesOf(folder, path = "") {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) yield* pagesOf(join(folder, entry.name), `${path}${entry.name}/`);
    else if (entry.name === "index.html") yield path;
  }
}

// What is wrong with an open page; runs in the browser.
function lookAround() {
  const wrong = [];
  for (const image of document.images) {
    if (!image.complete || image.naturalWidth === 0) wrong.push(`missing picture ${image.src}`);
    if (!image.alt) wrong.push(`picture without a description ${image.src}`);
  }
  for (const formula of document.querySelectorAll(".arithmatex")) {
    if (!formula.querySelector(".katex")) wrong.push(`formula not drawn: ${formula.textContent}`);
    if (formula.querySelector(".katex-error")) wrong.push(`bad formula: ${formula.textContent}`);
  }
  const shown = document.querySelector("article").cloneNode(true);
  shown.querySelectorAll("pre, code, .katex, script, style").forEach((node) => node.remove());
  const raw = shown.textContent.match(/\$\$|\\\(|\\\[|\\(frac|sigma|alpha|int|nabla|mathbb|text)\b/);
  if (raw) wrong.push(`raw TeX: ${raw[0]}`);
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide > 1) wrong.push(`${wide} pixels wider than the window`);
  return wrong;
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run"],
});
let wrong = 0, count = 0;
const complain = (path, text) => {
  wrong += 1;
  console.log(`${path || "home"}: ${text}`);
};

for (const [name, viewport, colorScheme] of [
  ["desk-light", DESK, "light"], ["desk-dark", DESK, "dark"], ["phone", PHONE, "light"],
]) {
  const context = await browser.newContext({ viewport, colorScheme });
  const page = await context.newPage();
  let path = "";
  page.on("console", (message) => {
    if (message.type() === "error") complain(path, `console: ${message.text()}`);
  });
  page.on("pageerror", (error) => complain(path, `error: ${error.message}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(home) && !url.startsWith("data:") && !url.startsWith("blob:")) {
      complain(path, `request to another host: ${url}`);
    }
  });
  for await (path of pagesOf(site)) {
    await page.goto(home + path);
    await page.evaluate(() => document.fonts.ready);
    for (const text of await page.evaluate(lookAround)) complain(path, `${name}: ${text}`);
    if (shots) {
      const file = join(shots, name, `${path.replaceAll("/", "_") || "home"}.png`);
      await mkdir(join(shots, name), { recursive: true });
      await page.screenshot({ path: file, fullPage: true });
    }
    count += 1;
  }
  await context.close();
}

const page = await browser.newPage({ viewport: DESK });
for (const words of ["Hutchinson", "log_prob", "Langevin"]) {
  await page.goto(`${home}?q=${words}`);
  const results = page.locator(".md-search-result__item");
  try {
    await results.first().waitFor({ timeout: 10000 });
  } catch {
    complain("search", `nothing found for ${words}`);
  }
}
await browser.close();
server.close();
console.log(`${count} views of pages, ${wrong} complaints`);
process.exit(wrong ? 1 : 0);
