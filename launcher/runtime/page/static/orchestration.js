// What an orchestration decided, what was judged and corrected, and what each project has.
import { call, known } from "./api.js";
import { clock, h, keyed, many, put, span } from "./dom.js";
import { ORCHESTRATION, row as eventRow } from "./timeline.js";
import { table } from "./requests.js";

const SHOWN = 200;

export function orchestration(main) {
  const about = h("p");
  const only = h("input", { type: "checkbox", onchange: () => draw() });
  const count = h("span", { class: "soft" });
  const course = h("ol", { class: "events", "aria-label": "Decisions, verdicts, corrections and blocks, the newest first" });
  const predictions = h("tbody");
  const decisions = h("tbody");
  const projects = h("tbody");
  const project = h("section", { "aria-live": "polite" });
  const all = h("div", {},
    h("h3", {}, "Decisions, verdicts, corrections, blocks"), h("div", { class: "row" }, h("label", {}, only, " only escalations and refused blocks"), count), course,
    h("h3", {}, "Requests that were decided about"), table("Requests that were decided about", ["When", "Asked", "Server", "Decision", "Status", "Seconds"], decisions),
    h("h3", {}, "Predictions"), table("Predictions", ["When", "Worker", "What", "Why"], predictions),
    h("h3", {}, "Projects"), h("div", { class: "row" }, h("button", { onclick: () => list() }, "Read the projects again")), table("Projects", ["Project", "Owner", "Answers", "Blocks", "Notes", "Last used", ""], projects), project);
  main.append(h("h2", {}, "Orchestration"), about, all);

  let listed = 0;

  function draw() {
    put(about, known.fleet?.auto.length ? `The fleet decides who answers: ${known.fleet.auto.join(", ")}` : "This fleet decides nothing: every name leads straight to its servers. A section `orchestration` in its files makes it choose, judge and correct (docs/orchestration.md).");
    all.hidden = !known.fleet?.auto.length && !listed && !known.events.some((e) => ORCHESTRATION.includes(e.kind));
    const bad = (e) => e.details.escalated || e.kind === "correction" || (e.kind === "verdict" && e.details.verdict !== "pass") || (e.kind === "generation" && e.details.status !== "complete");
    const found = known.events.filter((e) => ORCHESTRATION.includes(e.kind) && (!only.checked || bad(e)));
    count.textContent = `${many(found.length, "event")}${found.length > SHOWN ? `, the newest ${SHOWN} are shown` : ""}; ${many(known.events.filter((e) => e.details.escalated).length, "escalation")}`;
    keyed(course, found.slice(-SHOWN).reverse(), (e) => e.id, eventRow);
    const told = known.events.filter((e) => e.kind === "prediction" || e.kind === "preload").slice(-50).reverse();
    keyed(predictions, told, (e) => e.id, (e) => h("tr", {}, [clock(e.at), e.name, e.message].map((value) => h("td", {}, value)), h("td", { class: "long" }, e.cause)));
    keyed(decisions, known.ended.filter((r) => r.decision).slice(-SHOWN).reverse(), (r) => `${r.number} ${r.id}`,
      (r) => h("tr", {}, [clock(r.at), r.asked, r.server].map((value) => h("td", {}, value)), h("td", { class: "long" }, r.decision), [String(r.status), span(r.seconds)].map((value) => h("td", {}, value))));
  }

  async function list() {
    try {
      const found = (await call("/v1/launch/projects")).projects;
      listed = found.length;
      draw();
      put(projects, found.map((one) => h("tr", {}, h("th", { scope: "row" }, one.name), [one.owner || "–", one.generations, one.blocks, one.notes, clock(one.last_at)].map((value) => h("td", {}, String(value))),
        h("td", {}, h("button", { "aria-label": `Show ${one.name}${one.owner ? ` of ${one.owner}` : ""}`, onclick: () => open(one) }, "Show")))),
      found.length ? null : h("tr", {}, h("td", { colspan: 7 }, "No project has been used yet.")));
    } catch (error) { put(project, h("p", { class: "bad" }, error.message)); }
  }

  async function open(one) {
    try {
      const { generations } = await call(`/v1/launch/projects?${new URLSearchParams({ name: one.name, owner: one.owner })}`);
      put(project, h("h3", {}, `The last answers of ${one.name}`), generations.length ? generations.map((g) => {
        const inside = h("div");
        const details = h("details", {}, h("summary", {}, `${clock(g.began_at)}: ${g.model}, ${g.policy}, ${g.status}${g.code ? ` (${g.code})` : ""}: ${g.blocks} blocks, ${g.verdicts} verdicts`), inside);
        details.addEventListener("toggle", () => { if (details.open && !inside.firstChild) fillIn(inside, g.id); });
        return details;
      }) : h("p", {}, "No answer of it was validated; decisions about it stand above."));
    } catch (error) { put(project, h("p", { class: "bad" }, error.message)); }
  }

  list();
  return (told) => { if (["requests", "event", "fleet", "all"].some((what) => told.has(what))) draw(); };
}

async function fillIn(place, id) {
  try {
    const { blocks, verdicts, notes } = await call(`/v1/launch/generations/${encodeURIComponent(id)}`);
    put(place, blocks.map((block) => h("article", { class: "card" }, h("p", { class: "soft" }, `Block ${block.seq + 1} by ${block.server}, committed ${clock(block.committed_at)}: ${verdicts.filter((v) => v.seq === block.seq).map((v) => v.kind).join(", ")}`), h("pre", { dir: "auto" }, block.text))),
      verdicts.filter((v) => v.kind !== "pass").map((v) => h("p", {}, h("span", { class: "state bad" }, v.kind), ` block ${v.seq + 1}, verdict ${v.attempt}: ${v.reason}${v.correction ? `: ${v.correction}` : ""}`)),
      notes.length ? h("details", {}, h("summary", {}, `${notes.length} notes`), notes.map((note) => h("pre", { dir: "auto" }, note.text))) : null);
  } catch (error) { put(place, h("p", { class: "bad" }, error.message)); }
}
