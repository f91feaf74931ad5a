// What runs and waits now, and the last thousand.
import { age, call, known } from "./api.js";
import { clock, h, keyed, say, span } from "./dom.js";

const NOW = ["State", "Age", "Client", "Asked", "Server", "Path", "First part", "Parts", ""];
const ENDED = ["When", "State", "Status", "Client", "Asked", "Server", "Path", "Seconds", "First part", "Prompt", "Answer", "Tokens/s", "Why there"];
const SHOWN = 300;

export function requests(main, onLeave) {
  const now = h("tbody");
  const ended = h("tbody");
  const text = h("input", { type: "search", oninput: () => draw() });
  const failed = h("input", { type: "checkbox", onchange: () => draw() });
  const count = h("span", { class: "soft" });
  main.append(h("h2", {}, "Now"), table("Requests that run or wait", NOW, now),
    h("h2", {}, "The last thousand"),
    h("div", { class: "row" }, h("label", {}, "With ", text), h("label", {}, failed, " only those that failed"), h("button", { onclick: () => save(chosen()) }, "Export as CSV"), count),
    table("Requests that ended", ENDED, ended),
    h("p", { class: "soft" }, "No prompt and no answer is kept."));
  const chosen = () => {
    const wanted = text.value.toLowerCase();
    return known.ended.filter((r) => (!failed.checked || r.state !== "done") && (!wanted || `${r.client} ${r.asked} ${r.server} ${r.path} ${r.status} ${r.code} ${r.id}`.toLowerCase().includes(wanted)));
  };
  function drawNow() {
    keyed(now, known.now, (r) => r.id, (r) => h("tr", {}, NOW.slice(0, -1).map(() => h("td")), h("td", {}, h("button", { "aria-label": `Cancel request ${r.id}`, onclick: () => cancel(r.id) }, "Cancel"))),
      (row, r) => [r.state, span(age(r)), r.client, r.asked, r.server, r.path, span(r.first_s), r.generated_tokens || ""].forEach((value, at) => { row.children[at].textContent = value; }));
  }
  function draw() {
    drawNow();
    const found = chosen();
    count.textContent = `${found.length} of ${known.ended.length}${found.length > SHOWN ? `, the newest ${SHOWN} are shown` : ""}`;
    keyed(ended, found.slice(-SHOWN).reverse(), (r) => `${r.number} ${r.id}`, (r) => h("tr", {}, [clock(r.at, false), r.state, `${r.status} ${r.code}`, r.client, r.asked, r.server, r.path, span(r.seconds), span(r.first_s),
      r.prompt_tokens || "", r.generated_tokens || "", r.tokens_per_second ? r.tokens_per_second.toFixed(1) : "", r.decision].map((value) => h("td", {}, value))));
  }
  const every = setInterval(drawNow, 1000);
  onLeave(() => clearInterval(every));
  return (told) => { if (told.has("requests") || told.has("all")) draw(); };
}

export function table(title, titles, body) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, h("table", {}, h("thead", {}, h("tr", {}, titles.map((name) => h(name ? "th" : "td", name ? { scope: "col" } : {}, name)))), body));
}

async function cancel(id) {
  try { await call(`/v1/launch/requests/${encodeURIComponent(id)}/cancel`, {}); say("cancelled; its slot is free"); } catch (error) { say(error.message); }
}

function save(found) {
  const names = ["id", "at", "client", "path", "asked", "server", "state", "status", "code", "seconds", "first_s", "prompt_tokens", "generated_tokens", "tokens_per_second", "decision"];
  // a leading = + - @ would be a formula to a spreadsheet
  const cell = (value) => `"${String(value ?? "").replace(/^(?=[=+\-@])/, "'").replaceAll('"', '""')}"`;
  const lines = [names.join(","), ...found.map((r) => names.map((name) => cell(r[name])).join(","))];
  const link = h("a", { href: URL.createObjectURL(new Blob([lines.join("\r\n")], { type: "text/csv" })), download: "requests.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
