// Every server and service: how it is, what it takes, what may be done about it.
import { act, call, known } from "./api.js";
import { ask, bytes, clock, h, keyed, many, put, say, span, speed, sum, svg } from "./dom.js";

const STYLE = { ready: "good", sleeping: "good", failed: "bad", backoff: "bad", starting: "wait", stopping: "wait", stopped: "soft" };

let speeds = {};

export function fleet(main, onLeave) {
  const cards = h("div", { class: "cards" });
  const log = h("section", { class: "log", "aria-label": "Log", hidden: true });
  const text = h("input", { type: "search", oninput: () => draw() });
  const count = h("span", { class: "soft" });
  main.append(h("h2", {}, "Servers and services"), h("div", { class: "row" }, h("label", {}, "Show those with ", text), count), cards, ...upstreams(known.fleet?.upstreams || []), log);
  const logs = follower(log);
  const draw = () => {
    const wanted = text.value.toLowerCase();
    const all = [...known.processes.values()];
    const found = all.filter((p) => `${p.name} ${p.state} ${p.model} ${p.tier} ${p.roles.join(" ")}`.toLowerCase().includes(wanted));
    const states = new Map();
    for (const process of found) states.set(process.state, (states.get(process.state) || 0) + 1);
    const swaps = watched("");
    count.textContent = `${wanted ? `${found.length} of ` : ""}${all.length}: ${[...states].map(([state, number]) => `${number} ${state}`).join(", ")}${swaps.length ? `; ${swaps.join("; ")}` : ""}`;
    keyed(cards, found, (p) => p.name, () => h("article", { class: "card" }), (element, process) => card(element, process, logs));
  };
  const measure = async () => { try { speeds = (await call("/v1/launch/speeds")).speeds; draw(); } catch { /* the stream says that the fleet is away */ } };
  const every = setInterval(measure, 15000);
  measure();
  onLeave(() => { clearInterval(every); logs.stop(); });
  return draw;
}

// What is watched of a server (of the fleet: ""), once it was measured.
function watched(server) {
  return (known.status?.targets || []).filter((target) => target.server === server && typeof target.met === "boolean").map((target) =>
    `${target.name.replaceAll("_", " ")} ${target.met ? "met" : "missed"}: ${target.measured.toFixed(2)} (${target.limit})`);
}

// Servers that somebody else runs: nothing here starts or stops them.
function upstreams(found) {
  return found.length ? [h("section", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Upstreams" }, h("h2", {}, "Upstreams"),
    h("table", { id: "upstreams" }, h("thead", {}, h("tr", {}, ["Upstream", "URL", "Slots", "Models"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, found.map((one) => h("tr", {}, h("th", { scope: "row" }, one.name), h("td", {}, one.url), h("td", { class: "number" }, one.slots), h("td", {}, one.models.join(", ")))))))] : [];
}

function card(element, process, logs) {
  const planned = known.fleet?.servers.find((server) => server.name === process.name);
  const failure = known.failures.get(process.name);
  const targets = watched(process.name);
  const shown = JSON.stringify([process, planned, failure?.id, known.since.get(process.name), speeds[process.name], targets]);
  if (element.shown === shown) return;
  element.shown = shown;
  const focused = element.contains(document.activeElement) ? document.activeElement.textContent : null;
  const since = known.since.get(process.name) || (process.pid && process.started_at);
  const measured = Object.keys(process.measured_bytes).length;
  const rows = [
    ["Model", process.model || "–"],
    ["Since", `${since ? clock(since) : "–"}${process.ready_s && process.pid ? `, loaded in ${span(process.ready_s)}` : ""}`],
    ["Slots", process.slots ? `${process.in_flight ?? "?"} of ${process.slots} busy${process.queued ? `, ${process.queued} waiting` : ""}` : "–"],
    ["Speed", process.tokens_per_second ? `${speed(process.tokens_per_second)}, its last answer` : "–"],
    targets.length ? ["Targets", targets.join("; ")] : null,
    ["Planned", bytes(sum(process.planned_bytes))],
    planned?.proved ? ["Proven", `${bytes(sum(planned.proved.memory))} by its own dry run (${planned.proved.build})`] : null,
    ["Measured", measured ? `${bytes(sum(process.measured_bytes))}${process.pss_bytes ? `, its share ${bytes(process.pss_bytes)}` : ""}` : "–"],
    process.in_ram_percent !== null && process.in_ram_percent !== undefined ? ["In RAM", `${process.in_ram_percent.toFixed(0)} % ${process.in_ram}${process.pinned ? ", pinned" : ""}`] : null,
    ["Restarts", `${process.restarts}${failure ? `; last failure at ${clock(failure.at)}: ${failure.cause || failure.message}` : ""}`],
    process.rung ? ["Degraded", process.rung] : null,
    process.drift ? ["Drift", process.drift] : null,
    process.error ? ["Error", process.error] : null,
  ].filter(Boolean);
  const open = element.querySelector("details")?.open;
  put(element,
    h("header", {}, h("h3", {}, process.name), h("span", { class: `state ${STYLE[process.state] || ""}` }, process.state)),
    h("p", { class: "soft" }, [process.kind, process.tier, ...process.roles].filter(Boolean).join(" · ")),
    h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    spark(speeds[process.name]),
    h("div", { class: "row" }, buttons(process, planned, logs)), more(process, planned, open));
  if (focused) [...element.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
}

function buttons(process, planned, logs) {
  const label = (verb) => ({ "aria-label": `${verb} ${process.name}` });
  const made = [];
  const down = ["stopped", "failed"].includes(process.state);
  if (down) {
    const verb = planned?.exclusive ? "Swap in" : "Start";
    made.push(h("button", { ...label(verb), onclick: () => start(process, planned) }, verb));
  } else made.push(h("button", { ...label("Stop"), onclick: () => stop(process, planned) }, "Stop"), h("button", { ...label("Restart"), onclick: () => restart(process) }, "Restart"));
  made.push(h("button", { ...label("Log of"), onclick: () => logs.open(process.name) }, "Log"));
  return made;
}

// What is done seldom: the ladder and the warm pool.
function more(process, planned, open) {
  const label = (verb) => ({ "aria-label": `${verb} ${process.name}` });
  const made = [];
  const level = Number.parseInt(process.rung, 10) || 0;
  const next = planned?.rungs[level];
  const settled = ["ready", "sleeping", "stopped", "failed"].includes(process.state);
  if (next && settled) made.push(h("button", { ...label("Degrade"), onclick: () => rung("degrade", process, planned, level) }, "Degrade"));
  if (level && settled) made.push(h("button", { ...label("Restore"), onclick: () => rung("restore", process, planned, level) }, "Restore"));
  if (process.in_ram_percent !== null && process.in_ram_percent !== undefined) {
    if (process.in_ram_percent < 95) made.push(h("button", { ...label("Preload"), onclick: () => pool("preload", process) }, "Preload"));
    made.push(h("button", { ...label(process.pinned ? "Unpin" : "Pin"), onclick: () => pool(process.pinned ? "unpin" : "pin", process) }, process.pinned ? "Unpin" : "Pin"));
    if (process.in_ram && !process.pinned && !process.pid) made.push(h("button", { ...label("Evict"), onclick: () => pool("evict", process) }, "Evict"));
  }
  return made.length ? h("details", { open: Boolean(open) }, h("summary", {}, "More"), h("div", { class: "row" }, made)) : null;
}

const POOL = {
  preload: "Its files are read into RAM now. Where the pool has no room, files that were used least recently may leave it; no server stops.",
  pin: "Its files stay in RAM until they are unpinned, also after the fleet is started anew: the pool has that much less for others. No server stops.",
  unpin: "Its files may leave RAM when others are likelier. No server stops.",
  evict: "Its files may leave RAM; its next start reads the disk. No server stops.",
};

async function pool(verb, process) {
  const title = `${verb[0].toUpperCase()}${verb.slice(1)} ${process.name}`;
  if (!await ask(title, [POOL[verb]], title)) return;
  try { await call(`/v1/launch/pool/${encodeURIComponent(process.name)}/${verb}`, {}); say(`${process.name}: ${verb} is done`); } catch (error) { say(error.message); }
}

function rung(verb, process, planned, level) {
  const sizes = [sum(process.planned_bytes), ...planned.rungs.map((one) => one.bytes)];
  const to = verb === "degrade" ? level + 1 : 0;
  const running = process.pid ? [`It is drained, stopped and started anew; requests wait for it. ${busy(process.name)}`] : ["It does not run: its next start is by that."];
  const whole = planned.memory.reduce((size, need) => size + need.committed_bytes + need.file_bytes, 0);
  const then = to ? sizes[to] : whole;
  const here = level ? sizes[level] : whole;
  const lines = verb === "degrade"
    ? [`It is started smaller: ${planned.rungs[level].label}. It takes ${bytes(then)} instead of ${bytes(here)}, and stays so until it is restored here.`, ...running, "Nothing else must stop."]
    : [`It is started as planned: it takes ${bytes(then)} instead of ${bytes(here)}.`, ...running, "Nothing else is stopped for it: where that much is not free it runs out of memory, and comes down again by itself."];
  return go(verb, process, `${verb === "degrade" ? "Degrade" : "Restore"} ${process.name}`, lines);
}

async function go(verb, process, title, lines) {
  if (!await ask(title, lines, title)) return;
  try { await act(verb, process.name); say(`${process.name}: ${verb} is done`); } catch (error) { say(`${process.name}: ${error.message}`); }
}

function busy(name) {
  const count = known.now.filter((request) => request.server === name).length;
  return count ? `${many(count, "request")} of ${name} ${count === 1 ? "runs" : "run"} now, finished first as long as a drain may take.` : `No request of ${name} runs now.`;
}

function start(process, planned) {
  const rivals = planned?.exclusive ? [...known.fleet.servers, ...known.fleet.services].filter((other) => other.exclusive === planned.exclusive && other.name !== process.name
    && !["stopped", "failed"].includes(known.processes.get(other.name)?.state)) : [];
  const lines = [`It takes ${bytes(sum(process.planned_bytes))}.`];
  if (rivals.length) lines.push(`${rivals.map((other) => other.name).join(", ")} must stop: they take turns in the group ${planned.exclusive}.`, ...rivals.map((other) => busy(other.name)));
  else if (process.kind !== "server") lines.push("Nothing else must stop.");
  else lines.push("Nothing else must stop, unless memory is short: then servers go that are started on demand and idle.");
  return go(process.kind === "server" ? "start" : "restart", process, rivals.length ? `Swap in ${process.name}` : `Start ${process.name}`, lines);
}

function stop(process, planned) {
  return go("stop", process, `Stop ${process.name}`, [busy(process.name), planned?.start === "demand" ? "The next request for it starts it again." : "It stays stopped, for requests too, until it is started here or by launch reload."]);
}

function restart(process) {
  return go("restart", process, `Restart ${process.name}`, [busy(process.name), process.rung ? `It is started as it runs now (${process.rung}); requests wait for it. Nothing else must stop.` : "It is started as it was compiled; requests wait for it. Nothing else must stop."]);
}

// Bars of a minute each, over the last hour; `minutes`: [Unix time, mean tokens/s of the answers that ended then].
function spark(minutes) {
  if (!minutes?.length) return null;
  const most = Math.max(...minutes.map(([, rate]) => rate));
  const last = minutes.at(-1)[0];
  const title = `Last hour, by minute: at most ${speed(most)}`;
  return [h("p", { class: "soft" }, title), svg("svg", { class: "spark", viewBox: "0 0 60 32", preserveAspectRatio: "none", role: "img", "aria-label": title },
    svg("path", { d: minutes.map(([at, rate]) => `M${59 - (last - at) / 60} 32v${(-30 * rate / most).toFixed(1)}h.8V32z`).join("") }))];
}

// Follows one log until it is closed; a long one keeps its end. What would colour a terminal is left out.
function follower(section) {
  let ending = null;
  const stop = () => { ending?.abort(); ending = null; };
  const open = async (name) => {
    stop();
    const asked = document.activeElement?.getAttribute("aria-label");
    const mine = ending = new AbortController();
    const text = h("pre", { tabindex: "0", "aria-label": `Log of ${name}` });
    const close = () => { stop(); section.hidden = true; if (asked) document.querySelector(`[aria-label="${CSS.escape(asked)}"]`)?.focus(); };
    section.hidden = false;
    put(section, h("div", { class: "row" }, h("h2", {}, `Log of ${name}`), h("button", { onclick: close }, "Close the log")), text);
    section.onkeydown = (event) => { if (event.key === "Escape") close(); };
    text.focus({ preventScroll: true });
    try {
      const answer = await fetch(`/v1/launch/logs/${encodeURIComponent(name)}?lines=200&follow=1`, { signal: mine.signal });
      if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error?.message || `HTTP ${answer.status}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
        text.textContent = plain(text.textContent + value).slice(-200000);
        if (atEnd) text.scrollTop = text.scrollHeight;
      }
      text.append("\n[the log ends here: open it again to go on]\n");
    } catch (error) { if (error.name !== "AbortError") text.append(`\n[${error.message}]\n`); }
  };
  return { open, stop };
}

// A log without colours, titles and other words to a terminal; a sequence that is not whole yet stays.
const plain = (log) => log.replace(/\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])/g, "");
