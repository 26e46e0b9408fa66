// Reads [{page, formula}, ...] and prints those that KaTeX does not understand.
import { readFileSync } from "node:fs";
import katex from "katex";

let wrong = 0;
for (const { page, formula } of JSON.parse(readFileSync(0, "utf8"))) {
  const text = formula.trim();
  try {
    katex.renderToString(text.slice(2, -2), {
      displayMode: text.startsWith("\\["),
      throwOnError: true,
      strict: "error",
    });
  } catch (error) {
    wrong += 1;
    console.log(`${page}: ${text}\n    ${error.message}`);
  }
}
process.exit(wrong ? 1 : 0);
