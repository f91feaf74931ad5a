// What runs and waits now, and the last thousand.
import { age, call, known } from "./api.js";
import { clock, h, keyed, say, span } from "./dom.js";

const NOW = ["State", "Age", "Client", "Asked", "Server", "Path", "First token", "Tokens", ""];
const ENDED = ["When", "Status", "Client", "Asked", "Server", "Path", "Took", "First token", "Prompt", "Answer", "Tokens/s", "Decision"];
const NUMBERS = ["Age", "Took", "First token", "Tokens", "Prompt", "Answer", "Tokens/s"];
const STYLE = { failed: "bad", left: "wait" };
const SHOWN = 300;

export function requests(main, onLeave) {
  const now = h("tbody");
  const ended = h("tbody");
  const text = h("input", { type: "search", oninput: () => draw() });
  const failed = h("input", { type: "checkbox", onchange: () => draw() });
  const count = h("span", { class: "soft" });
  const none = h("p", { class: "soft" }, "Nothing runs or waits.");
  main.append(h("h2", {}, "Now"), none, table("Requests that run or wait", NOW, now, "stacked"),
    h("h2", {}, "Ended"),
    h("div", { class: "row" }, h("label", {}, "Show those with ", text), h("label", {}, failed, " only those that failed"), h("button", { onclick: () => save(chosen()) }, "Export as CSV"), count),
    table("Requests that ended", ENDED, ended),
    h("p", { class: "soft" }, "The last thousand are kept, in memory: names and figures, no prompt and no answer."));
  const chosen = () => {
    const wanted = text.value.toLowerCase();
    return known.ended.filter((r) => (!failed.checked || r.state !== "done") && (!wanted || `${r.client} ${r.asked} ${r.server} ${r.path} ${r.status} ${r.code} ${r.id}`.toLowerCase().includes(wanted)));
  };
  function drawNow() {
    none.hidden = known.now.length > 0;
    none.nextSibling.hidden = !known.now.length;
    keyed(now, known.now, (r) => r.id, (r) => h("tr", {}, NOW.slice(0, -1).map((title) => h("td", { "data-title": title, class: NUMBERS.includes(title) ? "number" : null })), h("td", {}, h("button", { "aria-label": `Cancel request ${r.id}`, onclick: () => cancel(r.id) }, "Cancel"))),
      (row, r) => [r.state, span(age(r)), r.client, r.asked, r.server, r.path, r.first_s === null ? "" : span(r.first_s), r.generated_tokens || ""].forEach((value, at) => { row.children[at].textContent = row.children[at].title = value; }));
  }
  function draw() {
    drawNow();
    const found = chosen();
    count.textContent = `${known.ended.length ? `${found.length} of ${known.ended.length}` : "none yet"}${found.length > SHOWN ? `, the newest ${SHOWN} are shown` : ""}`;
    keyed(ended, found.slice(-SHOWN).reverse(), (r) => `${r.number} ${r.id}`, (r) => h("tr", {}, [clock(r.at), outcome(r), r.client, r.asked, r.server, r.path, span(r.seconds), r.first_s === null ? "" : span(r.first_s),
      r.prompt_tokens || "", r.generated_tokens || "", r.tokens_per_second ? r.tokens_per_second.toFixed(1) : "", r.decision].map((value, at) => h("td", { title: value, class: NUMBERS.includes(ENDED[at]) ? "number" : at === 1 ? STYLE[r.state] : null }, value))));
  }
  const every = setInterval(drawNow, 1000);
  onLeave(() => clearInterval(every));
  return (told) => { if (told.has("requests") || told.has("all")) draw(); };
}

// How it ended, in a word: 499 is a client that left, for whom no status was sent.
const outcome = (r) => (r.state === "left" ? "client left" : `${r.status} ${r.code}`.trim());

export function table(title, titles, body, style = null) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, h("table", { class: style }, h("thead", {}, h("tr", {}, titles.map((name) => h(name ? "th" : "td", name ? { scope: "col", class: NUMBERS.includes(name) ? "number" : null } : {}, name)))), body));
}

async function cancel(id) {
  try { await call(`/v1/launch/requests/${encodeURIComponent(id)}/cancel`, {}); say("cancelled; its slot is free"); } catch (error) { say(error.message); }
}

function save(found) {
  const names = ["id", "at", "client", "path", "asked", "server", "state", "status", "code", "seconds", "first_s", "prompt_tokens", "generated_tokens", "tokens_per_second", "decision"];
  // a leading = + - @ would be a formula to a spreadsheet
  const cell = (value) => `"${String(value ?? "").replace(/^(?=[=+\-@\t\r])/, "'").replaceAll('"', '""')}"`;
  const lines = [names.join(","), ...found.map((r) => names.map((name) => cell(r[name])).join(","))];
  const link = h("a", { href: URL.createObjectURL(new Blob([lines.join("\r\n")], { type: "text/csv" })), download: "requests.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
