// Every server and service: how it is, what it takes, what may be done about it.
import { act, call, fleetNow, known } from "./api.js";
import { ask, bytes, clock, h, keyed, put, say, span, sum, svg } from "./dom.js";

const STYLE = { ready: "good", sleeping: "good", failed: "bad", backoff: "bad", starting: "wait", stopping: "wait", stopped: "soft" };

export function fleet(main, onLeave) {
  const cards = h("div", { class: "cards" });
  const log = h("section", { "aria-label": "Log", hidden: true });
  main.append(h("h2", {}, "Servers and services"), cards, ...upstreams(known.fleet?.upstreams || []), log);
  const logs = follower(log);
  const every = setInterval(() => draw(), 5000);
  onLeave(() => { clearInterval(every); logs.stop(); });
  const draw = () => keyed(cards, [...known.processes.values()], (p) => p.name, () => h("article", { class: "card" }),
    (element, process) => card(element, process, logs));
  return draw;
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
  const shown = JSON.stringify([process, planned, failure?.id, known.speeds.get(process.name)?.length, Math.floor(Date.now() / 60000)]);
  if (element.shown === shown) return;
  element.shown = shown;
  const focused = element.contains(document.activeElement) ? document.activeElement.textContent : null;
  const rows = [
    ["Model", process.model || "–"],
    ["Since", process.started_at && process.pid ? `${clock(process.started_at)}${process.ready_s ? `, ready after ${span(process.ready_s)}` : ""}` : "–"],
    ["Slots", process.slots ? `${process.in_flight ?? "?"} of ${process.slots} busy, ${process.queued} waiting` : "–"],
    ["Speed", process.tokens_per_second ? `${process.tokens_per_second.toFixed(1)} tokens/s` : "–"],
    ["Memory", `${bytes(sum(process.planned_bytes))} planned, ${planned?.proved ? `${bytes(sum(planned.proved.memory))} by its own dry run (${planned.proved.build}), ` : ""}${Object.keys(process.measured_bytes).length ? bytes(sum(process.measured_bytes)) : "–"} measured${process.pss_bytes ? `, ${bytes(process.pss_bytes)} its share` : ""}`],
    process.in_ram_percent !== null && process.in_ram_percent !== undefined ? ["In RAM", `${process.in_ram_percent.toFixed(0)} % ${process.in_ram}${process.pinned ? ", pinned" : ""}`] : null,
    ["Restarts", `${process.restarts}${failure ? `; the last failure: ${failure.cause || failure.message}, ${clock(failure.at)}` : ""}`],
    process.rung ? ["Degraded", process.rung] : null,
    process.drift ? ["Drift", process.drift] : null,
    process.error ? ["Error", process.error] : null,
  ].filter(Boolean);
  const open = element.querySelector("details")?.open;
  put(element,
    h("header", {}, h("h3", {}, process.name), h("span", { class: `state ${STYLE[process.state] || ""}` }, process.state)),
    h("p", { class: "soft" }, [process.kind, process.tier, ...process.roles].filter(Boolean).join(" · ")),
    h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    spark(known.speeds.get(process.name)),
    h("div", { class: "row" }, buttons(process, planned, logs)), more(process, planned, open));
  if (focused) [...element.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
}

function buttons(process, planned, logs) {
  const label = (verb) => ({ "aria-label": `${verb} ${process.name}` });
  const made = [];
  const down = ["stopped", "failed"].includes(process.state);
  if (process.kind === "server" && down) {
    made.push(h("button", { ...label(planned?.exclusive ? "Swap in" : "Start"), onclick: () => start(process, planned) }, planned?.exclusive ? "Swap in" : "Start"));
  }
  if (!down) made.push(h("button", { ...label("Stop"), onclick: () => stop(process) }, "Stop"));
  made.push(h("button", { ...label("Restart"), onclick: () => restart(process) }, "Restart"));
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
  pin: "Its files stay in RAM until they are unpinned or the fleet ends: the pool has that much less for others. No server stops.",
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
  return count ? `${count} of its requests run now: they are finished first, as long as a drain may take.` : "No request of its runs now.";
}

function start(process, planned) {
  const rivals = planned?.exclusive ? [...known.fleet.servers, ...known.fleet.services].filter((other) => other.exclusive === planned.exclusive && other.name !== process.name
    && !["stopped", "failed"].includes(known.processes.get(other.name)?.state)) : [];
  const lines = [`It takes ${bytes(sum(process.planned_bytes))}.`];
  if (rivals.length) lines.push(`${rivals.map((other) => other.name).join(", ")} must stop: they take turns in the group ${planned.exclusive}.`, ...rivals.map((other) => `${other.name}: ${busy(other.name)}`));
  else lines.push("Nothing else must stop, unless memory is short: then servers go that are started on demand and idle.");
  return go("start", process, rivals.length ? `Swap in ${process.name}` : `Start ${process.name}`, lines);
}

function stop(process) {
  return go("stop", process, `Stop ${process.name}`, [busy(process.name), "It stays stopped, for requests too, until it is started here or by launch reload."]);
}

function restart(process) {
  return go("restart", process, `Restart ${process.name}`, [busy(process.name), process.rung ? `It is started as it runs now (${process.rung}); requests wait for it. Nothing else must stop.` : "It is started as it was compiled; requests wait for it. Nothing else must stop."]);
}

function spark(speeds) {
  const since = fleetNow() - 3600;
  const points = (speeds || []).filter(([at]) => at > since);
  if (points.length < 2) return null;
  const most = Math.max(...points.map(([, speed]) => speed));
  const line = points.map(([at, speed]) => `${((at - since) / 36).toFixed(2)},${(30 - 28 * speed / most).toFixed(1)}`).join(" ");
  return svg("svg", { class: "spark", viewBox: "0 0 100 32", preserveAspectRatio: "none", role: "img", "aria-label": `tokens per second over the last hour, at most ${most.toFixed(1)}` },
    svg("polyline", { class: "line", points: line }));
}

// Follows one log until it is closed; a long one keeps its end.
function follower(section) {
  let ending = null;
  const stop = () => { ending?.abort(); ending = null; };
  const open = async (name) => {
    stop();
    const mine = ending = new AbortController();
    const text = h("pre", { tabindex: "0", "aria-label": `Log of ${name}` });
    section.hidden = false;
    put(section, h("h2", {}, `Log of ${name}`), h("button", { onclick: () => { stop(); section.hidden = true; } }, "Close the log"), text);
    section.scrollIntoView({ block: "nearest" });
    try {
      const answer = await fetch(`/v1/launch/logs/${encodeURIComponent(name)}?lines=200&follow=1`, { signal: mine.signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
        text.textContent = (text.textContent + value).slice(-200000);
        if (atEnd) text.scrollTop = text.scrollHeight;
      }
    } catch (error) { if (error.name !== "AbortError") say(error.message); }
  };
  return { open, stop };
}
