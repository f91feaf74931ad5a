// What the files say now, what is found about it, and what a reload would change.
import { call } from "./api.js";
import { ask, h, many, put, say } from "./dom.js";

export function plan(main) {
  const body = h("div", { "aria-live": "polite" });
  const look = h("button", { onclick: () => read() }, "Compile the files again");
  const reload = h("button", { class: "main", disabled: true, onclick: () => take() }, "Reload");
  main.append(h("h2", {}, "Plan"), h("div", { class: "row" }, look, reload), body);
  let fleet = null;
  async function read() {
    look.disabled = reload.disabled = true;
    put(body, h("p", {}, "compiling…"));
    try {
      const said = await call("/v1/launch/plan");
      fleet = said.fleets?.[0] || null;
      put(body, fleet ? difference(fleet) : h("p", { class: "bad" }, "The files do not compile to a fleet that could run; what runs goes on."), findings(fleet ? fleet.findings : said.findings || []),
        said.error && !(said.findings || []).length ? h("pre", {}, String(said.error)) : null);
      reload.disabled = !fleet;
    } catch (error) { put(body, h("p", { class: "bad" }, error.message)); }
    look.disabled = false;
  }
  async function take() {
    if (!await ask("Reload", lines(fleet), "Reload")) return;
    reload.disabled = true;
    try {
      const said = await call("/v1/launch/apply", {});
      const done = said.fleets?.[0];
      say(done ? `reloaded: ${summary(done)}` : "the reload was refused");
      if (!done) { put(body, findings(said.findings || [])); return; }
    } catch (error) { say(error.message); }
    await read();
  }
  read();
}

const VERBS = [["started", "would start"], ["restarted", "would restart"], ["stopped", "would stop"]];

function lines(fleet) {
  const found = VERBS.flatMap(([key, verb]) => fleet[key].map((name) => `${name} ${verb}${key === "restarted" && fleet.reasons[name] ? `: ${fleet.reasons[name]}` : ""}`));
  return found.length ? found : ["No process would start, stop or restart."];
}

function summary(fleet) {
  return VERBS.filter(([key]) => fleet[key]?.length).map(([key]) => `${key} ${fleet[key].join(", ")}`).join("; ") || "no process changed";
}

function difference(fleet) {
  return [h("h3", {}, "What runs and what the files say"), h("p", {}, fleet.same_files ? "The files say what runs." : "The files say something else than what runs."), h("ul", { id: "changes" }, lines(fleet).map((line) => h("li", {}, line))),
    fleet.kept.length ? h("p", { class: "soft" }, `Kept: ${fleet.kept.join(", ")}`) : null];
}

function findings(found) {
  if (!found.length) return h("p", {}, "Nothing is found about it.");
  const kinds = ["error", "warning", "note"].map((kind) => [kind, found.filter((one) => one.severity === kind).length]).filter(([, count]) => count);
  return [h("h3", {}, `Findings: ${kinds.map(([kind, count]) => many(count, kind)).join(", ")}`), h("div", { class: "list" }, found.map((one) => h("article", { class: "card" },
    h("p", {}, h("span", { class: `state ${STYLE[one.severity] || "soft"}` }, one.severity), ` ${one.message}`),
    h("p", { class: "soft" }, [one.code, place(one)].filter(Boolean).join(" · ")),
    one.notes?.length ? h("ul", {}, one.notes.map((note) => h("li", {}, note))) : null,
    one.fixes?.length ? h("p", {}, "Overrides that mend it:") : null,
    one.fixes?.length ? h("ul", {}, one.fixes.map((fix) => h("li", {}, h("code", {}, fix.override), ` ${fix.effect}`))) : null,
    explanation(one.code))))];
}

const STYLE = { error: "bad", warning: "wait" };

// Where it is written: a file and its line, else the key that it is about.
const place = ({ location, key }) => (location && !location.file.startsWith("<") ? `${location.file}:${location.line}` : key);

function explanation(code) {
  const inside = h("div", {});
  const details = h("details", {}, h("summary", {}, "What it means, and what to do"), inside);
  details.addEventListener("toggle", async () => {
    if (!details.open || inside.firstChild) return;
    put(inside, h("p", { class: "soft" }, "looking it up…"));
    try {
      const [found] = (await call(`/v1/launch/explanations/${code}`)).codes;
      const worded = (text) => text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));
      put(inside, h("p", {}, worded(found.meaning)), h("pre", {}, found.example), h("p", {}, worded(found.remedy)));
    } catch (error) { put(inside, h("p", { class: "bad" }, error.message)); }
  });
  return details;
}
