// The frame: who may look, which page is shown, and what the stream says of itself.
import { call, follow, known, load, onChange } from "./api.js";
import { clock, h, put, say } from "./dom.js";
import { chat } from "./chat.js";
import { devices } from "./devices.js";
import { fleet } from "./fleet.js";
import { orchestration } from "./orchestration.js";
import { plan } from "./plan.js";
import { requests } from "./requests.js";
import { timeline } from "./timeline.js";

const PAGES = { fleet, devices, timeline, requests, plan, try: chat, orchestration };
const TITLES = { fleet: "Fleet", devices: "Devices", timeline: "Timeline", requests: "Requests", plan: "Plan", try: "Try it", orchestration: "Orchestration" };
const main = document.getElementById("main");
let leave = null;
let update = null;
let source = null;
let stream = "connecting";
let shown = false;
let seen = 0;

function show() {
  const name = location.hash.slice(1).split("/")[0];
  const page = PAGES[name] ? name : "fleet";
  shown = true;
  put(document.getElementById("tabs"), Object.keys(PAGES).map((key) =>
    h("a", { href: `#${key}`, "aria-current": key === page ? "page" : null }, TITLES[key])));
  document.title = `${TITLES[page]} – ${known.fleet?.deployment || "launch"}`;
  leave?.();
  leave = null;
  put(main);
  update = PAGES[page](main, (end) => { leave = end; }) || null;
  update?.(new Set(["all"]));
}

function state(text) {
  const status = known.status;
  const failed = [...known.processes.values()].filter((process) => ["failed", "backoff"].includes(process.state)).map((process) => process.name);
  const fleetState = !status ? "" : failed.length ? `, failed: ${failed.join(", ")}` : status.ready ? ", ready" : ", not ready: something is still to start";
  const place = document.getElementById("state");
  // what stands below is not so any more, perhaps: nobody should take it for the present
  const away = text !== "live" && seen > 0;
  main.classList.toggle("away", away && shown);
  const said = `${text}${away && shown ? `: what stands here was so at ${clock(seen)}` : fleetState}`;
  if (place.textContent !== said) place.textContent = said;
  place.className = text !== "live" || !status?.ready ? "wait" : failed.length ? "bad" : "good";
}

async function begin() {
  let refused = "";
  const given = new URLSearchParams(location.hash.slice(1)).get("enter");
  if (given) {
    history.replaceState(null, "", location.pathname);
    shown = false;
    try { await call("/ui/enter", { token: given }); } catch (error) { refused = error.message; }
  }
  try { await load(); } catch (error) {
    if (error.status === 401 || error.status === 403) login(refused || (given ? error.message : ""));
    else { state(`the fleet does not answer: ${error.message}`); setTimeout(begin, 2000); }
    return;
  }
  if (refused) say(refused); // but this browser was admitted before
  document.getElementById("fleet-name").textContent = known.fleet.deployment;
  source?.close();
  source = follow((text) => {
    if (stream === "live" && text !== "live") seen = Date.now() / 1000;
    stream = text;
    state(text);
    if (text === "closed") setTimeout(begin, 2000);
  });
  if (!shown) show();
}

function login(why) {
  leave?.();
  source?.close();
  leave = update = source = null;
  shown = false;
  document.getElementById("state").textContent = "not admitted";
  main.classList.remove("away");
  put(document.getElementById("tabs"));
  const field = h("input", { type: "password", id: "key", autocomplete: "current-password" });
  const said = h("p", { class: "bad", role: "alert" }, why);
  const enter = async (event) => {
    event.preventDefault();
    try { await call("/ui/enter", { key: field.value }); location.reload(); } catch (error) { said.textContent = error.message; }
  };
  put(main, h("h2", {}, "Who are you?"), known.status ? h("p", {}, "This browser was admitted before: the fleet was started anew since then, or the session ended.") : null,
    h("p", {}, "Run ", h("code", {}, "launch ui"), " on the machine of the fleet: it opens this page with a link that is good once."),
    h("form", { onsubmit: enter, class: "row" }, h("label", {}, "Or an API key with the scope admin ", field), h("button", { class: "main" }, "Enter")), said);
}

onChange((told) => { if (told.has("status") || told.has("processes")) state(stream); update?.(told); });
window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#enter=")) begin(); // a link that was opened in this very tab
  else if (shown) { show(); window.scrollTo(0, 0); main.focus({ preventScroll: true }); }
});
window.addEventListener("pagehide", () => source?.close());
window.addEventListener("pageshow", (event) => { if (event.persisted) begin(); });
window.launch = known; // for whoever looks from outside, tests among them
begin();
