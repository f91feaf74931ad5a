// A chat with any name that the front answers to: streamed, with what was decided, and the same as code.
import { call, known } from "./api.js";
import { h, keyed, put, say } from "./dom.js";
import { row as eventRow } from "./timeline.js";

export function chat(main, onLeave) {
  const model = h("select");
  const text = h("textarea", { id: "prompt", placeholder: "Ask something", dir: "auto" });
  const image = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp" });
  const most = h("input", { type: "number", value: 256, min: 1, max: 8192 });
  const talk = h("div", { class: "talk", role: "log", "aria-label": "Conversation", "aria-live": "polite" });
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
  main.append(h("h2", {}, "Try it"), h("div", { class: "row" }, h("label", {}, "Model ", model), policies, h("label", {}, "At most ", most, " tokens"), pictures),
    talk, decision, course, drafts, h("label", { for: "prompt" }, "Message"), text,
    h("div", { class: "row" }, send, stop, h("button", { onclick: () => { messages.length = 0; put(talk); put(decision); generation = ""; judged(); } }, "Begin anew"), ["curl", "Python", "Node"].map((kind) => h("button", { onclick: () => copy(kind) }, `Copy as ${kind}`))), code);
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) go(); });
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

  const body = () => ({ model: model.value, messages: messages.length ? messages : [{ role: "user", content: text.value || "Hello" }], max_tokens: Number(most.value), stream: true });

  async function content() {
    const file = image.files[0];
    if (!file || pictures.hidden) return text.value;
    const url = await new Promise((resolve, reject) => { const reader = new FileReader(); reader.onload = () => resolve(reader.result); reader.onerror = reject; reader.readAsDataURL(file); });
    return [{ type: "text", text: text.value }, { type: "image_url", image_url: { url } }];
  }

  async function go() {
    if (!text.value.trim() || ending) return;
    messages.push({ role: "user", content: await content() });
    talk.append(h("div", { class: "turn user", dir: "auto" }, text.value));
    const turn = h("div", { class: "turn assistant", dir: "auto" });
    talk.append(turn);
    text.value = "";
    image.value = "";
    ending = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    put(decision);
    generation = orchestrated() ? [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("") : "";
    judged();
    try {
      const answer = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body()), signal: ending.signal });
      const told = ["x-launch-server", "x-launch-decision", "x-generation-id"].map((name) => [name, answer.headers.get(name)]).filter(([, value]) => value);
      put(decision, told.map(([name, value]) => `${name.replace("x-", "")}: ${value}  `));
      if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error?.message || `HTTP ${answer.status}`);
      for await (const event of events(answer.body)) {
        if (event.kind && event.kind !== "message" && event.kind !== "error") continue;
        if (event.data === "[DONE]") break;
        const part = JSON.parse(event.data);
        if (part.error) throw new Error(part.error.message);
        const delta = part.choices?.[0]?.delta || {};
        turn.append(document.createTextNode((delta.reasoning_content || "") + (delta.content || "")));
      }
      messages.push({ role: "assistant", content: turn.textContent });
    } catch (error) {
      if (!turn.textContent) messages.pop(); else messages.push({ role: "assistant", content: turn.textContent });
      turn.append(h("p", { class: "bad" }, error.name === "AbortError" ? "stopped" : error.message));
    }
    ending = null;
    send.disabled = false;
    stop.disabled = true;
    text.focus();
  }

  async function copy(kind) {
    code.hidden = false;
    code.textContent = CODE[kind](`${location.origin}/v1`, body());
    try { await navigator.clipboard.writeText(code.textContent); say("copied"); } catch { say("copy it from below"); }
  }

  const choose = () => {
    const chosen = model.value;
    const names = [...new Set([...(known.fleet?.auto || []), ...(known.fleet?.names || [])])].filter((name) => !known.fleet.servers.find((server) => server.name === name)?.embedding);
    policies.hidden = !orchestrated();
    put(model, names.map((name) => h("option", { value: name }, name)));
    if (names.includes(chosen)) model.value = chosen;
    images();
  };
  const images = () => {
    const server = known.fleet?.servers.find((one) => one.name === model.value || one.roles.includes(model.value) || one.aliases.includes(model.value));
    pictures.hidden = Boolean(server) && !server.modalities.includes("image");
  };
  model.addEventListener("change", images);
  return (told) => { if (told.has("fleet") || told.has("all")) choose(); if (told.has("event")) judged(); };
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
