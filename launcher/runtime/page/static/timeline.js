// What happened when and why, over hours.
import { known } from "./api.js";
import { clock, h, keyed, many } from "./dom.js";

const STYLE = { failed: "bad", degraded: "bad", evicted: "wait", room: "wait", target: "wait", slow: "wait", ready: "good", restored: "good", swap: "good", block: "good", correction: "wait" };
export const ORCHESTRATION = ["decision", "verdict", "correction", "block", "generation"];
const SHOWN = 500;

export function timeline(main) {
  const kind = h("select", { onchange: () => draw() }, h("option", { value: "" }, "what happened to the fleet"), h("option", { value: "*" }, "everything, answers' decisions too"));
  const text = h("input", { type: "search", oninput: () => draw() });
  const list = h("ol", { class: "events", "aria-label": "Events, the newest first" });
  const count = h("p", { class: "soft" });
  main.append(h("h2", {}, "Timeline"), h("div", { class: "row" }, h("label", {}, "Show ", kind), h("label", {}, "with ", text)), count, list);
  const kinds = new Set();
  function draw() {
    for (const record of known.events) {
      if (kinds.has(record.kind)) continue;
      kinds.add(record.kind);
      kind.append(h("option", { value: record.kind }, record.kind));
    }
    const wanted = text.value.toLowerCase();
    const chosen = (record) => (kind.value ? ["*", record.kind].includes(kind.value) : !ORCHESTRATION.includes(record.kind));
    const found = known.events.filter((record) => chosen(record)
      && (!wanted || `${record.name} ${record.message} ${record.cause}`.toLowerCase().includes(wanted)));
    count.textContent = `${many(found.length, "event")}${found.length > SHOWN ? `, the newest ${SHOWN} are shown` : ""}`;
    keyed(list, found.slice(-SHOWN).reverse(), (record) => record.id, row);
  }
  return (told) => { if (told.has("event") || told.has("all")) draw(); };
}

export function row(record) {
  const details = Object.keys(record.details).length ? h("details", {}, h("summary", {}, "figures"), h("pre", {}, JSON.stringify(record.details, null, 1))) : null;
  return h("li", {}, h("time", { datetime: new Date(record.at * 1000).toISOString() }, clock(record.at)), h("span", { class: `state ${STYLE[record.kind] || ""}` }, record.kind),
    h("div", { dir: "auto" }, record.name ? h("strong", {}, `${record.name}: `) : null, record.message, record.cause ? h("span", { class: "soft" }, ` (${record.cause})`) : null), details);
}
