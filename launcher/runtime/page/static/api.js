// What the page knows, where it comes from, and what it may ask. One stream carries every change.
const EVENTS_KEPT = 5000;
const REQUESTS_KEPT = 1000;
const STATES = ["starting", "adopted", "ready", "failed", "stopping", "evicted", "stopped"];

export const known = { status: null, processes: new Map(), events: [], failures: new Map(), since: new Map(), now: [], heard: 0, ended: [], fleet: null };
const readers = new Set();
let changed = new Set();
let frame = 0;

export function onChange(reader) { readers.add(reader); return () => readers.delete(reader); }

function tell(what) {
  changed.add(what);
  if (!frame) frame = setTimeout(flush, 50);
}

function flush() {
  frame = 0;
  const told = changed;
  changed = new Set();
  performance.mark("update");
  for (const reader of readers) reader(told);
  performance.measure("launch-update", "update");
  performance.clearMarks("update");
  const took = performance.getEntriesByName("launch-update").at(-1).duration;
  known.longestUpdate = Math.max(known.longestUpdate || 0, took);
  known.updates = (known.updates || 0) + 1;
  known.script = (known.script || 0) + took;
  performance.clearMeasures("launch-update");
}

export class Refused extends Error {
  constructor(status, error) { super(error.message || `HTTP ${status}`); this.status = status; this.error = error; }
}

export async function call(path, body, method) {
  const answer = await fetch(path, {
    method: method || (body === undefined ? "GET" : "POST"),
    headers: body === undefined ? {} : { "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "same-origin",
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, said.error || {});
  return said;
}

export const act = (verb, name) => call(`/v1/launch/servers/${encodeURIComponent(name)}/${verb}`, {});

export function follow(onState) {
  const source = new EventSource("/v1/launch/events");
  source.onopen = () => onState("live");
  source.onerror = () => onState(source.readyState === EventSource.CLOSED ? "closed" : "reconnecting");
  const on = (kind, take) => source.addEventListener(kind, (message) => { take(JSON.parse(message.data)); tell(kind); });
  on("event", (record) => {
    const last = known.events.at(-1);
    if (last && record.id <= last.id) {
      if (known.events.some((other) => other.id === record.id)) return;
      known.events = []; // numbers that begin anew are those of another log
    }
    known.events.push(record);
    if (record.kind === "failed") known.failures.set(record.name, record);
    if (STATES.includes(record.kind)) known.since.set(record.name, record.at);
    if (known.events.length > EVENTS_KEPT) known.events.splice(0, known.events.length - EVENTS_KEPT);
    if (record.kind === "reload") load().catch(() => {}); // the stream says that the fleet is away
  });
  on("status", (status) => {
    known.status = status;
    known.processes = new Map(status.processes.map((process) => [process.name, process]));
  });
  on("processes", (processes) => { for (const process of processes) known.processes.set(process.name, process); });
  on("requests", ({ now, ended }) => {
    known.now = now;
    known.heard = performance.now();
    if (!ended.length) return;
    // a stream that begins anew tells all that ended; numbers begin anew with another runtime
    const again = ended[0].number <= (known.ended.at(-1)?.number ?? 0);
    known.ended = again ? ended : [...known.ended, ...ended];
    if (known.ended.length > REQUESTS_KEPT) known.ended = known.ended.slice(-REQUESTS_KEPT);
  });
  return source;
}

export const age = (request) => request.seconds + (performance.now() - known.heard) / 1000;

export async function load() {
  known.fleet = await call("/v1/launch/fleet");
  tell("fleet");
}
