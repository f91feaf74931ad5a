// A chat with any name that the front answers to: streamed, with what was decided, and the same as code.
import { call, known } from "./api.js";
import { h, keyed, many, put, say, span, speed } from "./dom.js";
import { row as eventRow } from "./timeline.js";

export function chat(main, onLeave) {
  const model = h("select");
  const text = h("textarea", { id: "prompt", placeholder: "Ask something. Enter sends, Shift+Enter begins a line", dir: "auto" });
  const image = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp" });
  const most = h("input", { type: "number", value: 256, min: 1, max: 8192 });
  const talk = h("div", { class: "talk", role: "log", "aria-label": "Conversation", "aria-live": "polite" });
  const leads = h("p", { class: "soft", id: "leads" });
  const decision = h("p", { class: "soft" });
  const send = h("button", { class: "main", onclick: () => go() }, "Send");
  const stop = h("button", { disabled: true, onclick: () => ending?.abort() }, "Stop");
  const policy = h("select", {}, ["as the fleet decides", "none", "final", "block_by_block"].map((name, at) => h("option", { value: at ? name : "" }, name)));
  const policies = h("label", { hidden: true }, "Validation ", policy);
  const course = h("ol", { class: "events", "aria-label": "What was decided and judged", "aria-live": "polite" });
  const drafts = h("details", { hidden: true }, h("summary", {}, "Refused drafts: why"), h("div"));
  let generation = "";
  const code = h("pre", { hidden: true, tabindex: "0" });
  const pictures = h("label", {}, "Image ", image);
  const messages = [];
  let ending = null;
  main.append(h("h2", {}, "Try it"), h("div", { class: "row" }, h("label", {}, "Model ", model), policies, h("label", {}, "At most ", most, " tokens"), pictures), leads,
    talk, decision, course, drafts, h("label", { for: "prompt" }, "Message"), text,
    h("div", { class: "row" }, send, stop, h("button", { onclick: () => { messages.length = 0; put(talk); put(decision); generation = ""; judged(); } }, "Begin anew"), ["curl", "Python", "Node"].map((kind) => h("button", { onclick: () => copy(kind) }, `Copy as ${kind}`))), code);
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); go(); } });
  onLeave(() => ending?.abort());

  const orchestrated = () => Boolean(known.fleet?.auto.length);
  const headers = () => ({ "content-type": "application/json", ...(generation ? { "x-generation-id": generation } : {}), ...(generation && policy.value ? { "x-validation-policy": policy.value } : {}) });

  // The events of this answer, as they come; why a draft was refused stands in the project memory alone.
  async function judged() {
    const mine = generation;
    const events = mine ? known.events.filter((record) => record.details.generation === mine) : [];
    keyed(course, events, (record) => record.id, eventRow);
    drafts.hidden = !events.some((record) => record.kind === "verdict" && record.details.verdict !== "pass");
    if (drafts.hidden || drafts.known === events.at(-1).id) return;
    drafts.known = events.at(-1).id;
    try {
      const { notes } = await call(`/v1/launch/generations/${mine}`);
      if (mine === generation) put(drafts.lastChild, notes.filter((note) => note.text.startsWith("[")).map((note) => h("pre", { dir: "auto" }, note.text)));
    } catch (error) { put(drafts.lastChild, error.message); }
  }

  const body = (asked) => ({ model: model.value, messages: asked, max_tokens: Number(most.value), stream: true });

  async function content() {
    const file = image.files[0];
    if (!file || pictures.hidden) return text.value;
    const url = await new Promise((resolve, reject) => { const reader = new FileReader(); reader.onload = () => resolve(reader.result); reader.onerror = reject; reader.readAsDataURL(file); });
    return [{ type: "text", text: text.value }, { type: "image_url", image_url: { url } }];
  }

  async function go() {
    if (!text.value.trim() || ending) return;
    ending = new AbortController();
    const said = await content();
    messages.push({ role: "user", content: said });
    talk.append(h("div", { class: "turn user", dir: "auto" }, text.value, Array.isArray(said) ? h("img", { src: said[1].image_url.url, alt: "the image that was sent" }) : null));
    const turn = h("div", { class: "turn assistant", dir: "auto" });
    const thought = h("div", { class: "turn thought", dir: "auto" });
    const figures = h("p", { class: "soft", "aria-live": "off" }, "waiting for the first token…");
    talk.append(thought, turn, figures);
    const began = performance.now();
    const passed = () => (performance.now() - began) / 1000;
    let first = null;
    let parts = 0;
    let why = "";
    text.value = "";
    image.value = "";
    send.disabled = true;
    stop.disabled = false;
    put(decision);
    generation = orchestrated() ? [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("") : "";
    judged();
    try {
      const answer = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body(messages)), signal: ending.signal });
      const told = [["x-launch-server", "answered by"], ["x-launch-decision", "decision"], ["x-generation-id", "generation"]].map(([name, said]) => [said, answer.headers.get(name)]).filter(([, value]) => value);
      decision.textContent = told.map(([said, value]) => `${said}: ${value}`).join(" · ");
      if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error?.message || `HTTP ${answer.status}`);
      for await (const event of events(answer.body)) {
        if (event.kind && event.kind !== "message" && event.kind !== "error") continue;
        if (event.data === "[DONE]") break;
        const part = JSON.parse(event.data);
        if (part.error) throw new Error(part.error.message);
        const choice = part.choices?.[0];
        why = choice?.finish_reason || why;
        const { content: more, reasoning_content: reason } = choice?.delta || {};
        if (!more && !reason) continue;
        first ??= passed();
        parts += 1;
        if (reason) thought.append(document.createTextNode(reason));
        if (more) turn.append(document.createTextNode(more));
        figures.textContent = `first token after ${span(first)}, ${many(parts, "part")} so far`;
      }
      const rate = parts > 1 && passed() > first ? `, ${speed((parts - 1) / (passed() - first))}` : "";
      figures.textContent = first === null ? "It answered nothing." : `first token after ${span(first)}, ${many(parts, "part")} in ${span(passed())}${rate}${why === "length" ? "; cut at the most tokens that it may answer" : ""}`;
      messages.push({ role: "assistant", content: turn.textContent });
    } catch (error) {
      if (!turn.textContent) messages.pop(); else messages.push({ role: "assistant", content: turn.textContent });
      put(figures, h("span", { class: "bad" }, error.name === "AbortError" ? "stopped" : error.message));
    }
    ending = null;
    send.disabled = false;
    stop.disabled = true;
    text.focus();
  }

  async function copy(kind) {
    code.hidden = false;
    // what was asked last, or what would be asked now
    const asked = text.value.trim() || !messages.length ? [...messages, { role: "user", content: text.value.trim() ? await content() : "Hello" }] : messages.slice(0, messages.findLastIndex((one) => one.role === "user") + 1);
    code.textContent = CODE[kind](`${location.origin}/v1`, body(asked));
    try { await navigator.clipboard.writeText(code.textContent); say("copied"); } catch { say("copy it from below"); }
  }

  const server = (name) => known.fleet?.servers.find((one) => one.name === name || one.roles.includes(name) || one.aliases.includes(name));
  const choose = () => {
    const names = [...new Set([...(known.fleet?.auto || []), ...(known.fleet?.names || [])])].filter((name) => !server(name)?.embedding);
    const chosen = model.value || known.fleet?.auto[0] || names.find((name) => known.processes.get(server(name)?.name)?.state === "ready");
    policies.hidden = !orchestrated();
    put(model, names.map((name) => h("option", { value: name }, name)));
    if (names.includes(chosen)) model.value = chosen;
    images();
  };
  const images = () => {
    const one = server(model.value);
    pictures.hidden = Boolean(one) && !one.modalities.includes("image");
    lead();
  };
  // Who would answer, and what it takes: nobody should swap a fleet by asking it something without knowing.
  const lead = () => {
    const one = server(model.value);
    const state = known.processes.get(one?.name)?.state;
    const rivals = one?.exclusive ? known.fleet.servers.filter((other) => other.exclusive === one.exclusive && other !== one && known.processes.get(other.name)?.pid).map((other) => other.name) : [];
    leads.textContent = known.fleet?.auto.includes(model.value) ? "The fleet decides who answers." : !one ? ""
      : state === "stopped" ? `${one.name} is stopped: asking it starts it${rivals.length ? `, and ${rivals.join(", ")} must stop` : ""}.` : `${one.name} is ${state || "not known"}.`;
  };
  model.addEventListener("change", images);
  return (told) => { if (told.has("fleet") || told.has("all")) choose(); else if (told.has("status") || told.has("processes")) lead(); if (told.has("event")) judged(); };
}

// Server-sent events of an answer.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/);
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data) yield { kind: lines.find((line) => line.startsWith("event:"))?.slice(6).trim(), data };
    }
  }
}

const CODE = {
  curl: (url, body) => `curl ${url}/chat/completions \\\n  -H 'Content-Type: application/json' -H "Authorization: Bearer $LAUNCH_API_KEY" \\\n  -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`,
  Python: (url, body) => `import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(url)}, api_key=os.environ.get("LAUNCH_API_KEY", "none"))\nfor part in client.chat.completions.create(\n    model=${JSON.stringify(body.model)},\n    messages=${JSON.stringify(body.messages)},\n    max_tokens=${body.max_tokens},\n    stream=True,\n):\n    if part.choices:\n        print(part.choices[0].delta.content or "", end="", flush=True)\n`,
  Node: (url, body) => `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: ${JSON.stringify(url)}, apiKey: process.env.LAUNCH_API_KEY ?? "none" });\nfor await (const part of await client.chat.completions.create(${JSON.stringify(body, null, 2)})) {\n  process.stdout.write(part.choices[0]?.delta?.content ?? "");\n}\n`,
};
