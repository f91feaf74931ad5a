// Run by Node where the public clients are installed: `node node_clients.mjs URL MODEL OLLAMA` prints what each gets, as JSON.
// OLLAMA: a front that answers as an Ollama; its client is compared with what llama-server says itself.
import { createRequire } from "node:module";
import path from "node:path";
const require = createRequire(path.join(process.cwd(), "any.js"));
const OpenAI = require("openai").default ?? require("openai");
const Anthropic = require("@anthropic-ai/sdk").default ?? require("@anthropic-ai/sdk");
const { Ollama } = require("ollama");
const [url, model, ollamaUrl, only] = process.argv.slice(2);
const messages = [{ role: "user", content: "Say hello." }];
const long = [{ role: "user", content: "word ".repeat(1500) }];
const gpt = new OpenAI({ baseURL: `${url}/v1`, apiKey: "not-needed", maxRetries: 0 });
const claude = new Anthropic({ baseURL: url, apiKey: "not-needed", maxRetries: 0 });
const ollama = new Ollama({ host: ollamaUrl });
const options = { num_predict: 8 };

async function collected(parts) {
  let text = "";
  for await (const part of parts) text += part.choices?.[0]?.delta?.content ?? part.message?.content ?? part.delta?.text ?? "";
  return text !== "";
}

const calls = {
  "openai: chat": async () => {
    const said = await gpt.chat.completions.create({ model, messages, max_tokens: 8 });
    return [said.choices[0].message.content !== "", said.usage.prompt_tokens];
  },
  "openai: stream": async () => collected(await gpt.chat.completions.create({ model, messages, max_tokens: 8, stream: true })),
  "openai: too long": () => gpt.chat.completions.create({ model, messages: long }),
  "openai: response": async () => (await gpt.responses.create({ model, input: "Say hello.", max_output_tokens: 8 })).output[0].type,
  "anthropic: message": async () => {
    const said = await claude.messages.create({ model, messages, max_tokens: 8 });
    return said.content[0].type; // how many tokens it counts depends on what is cached
  },
  "anthropic: stream": async () => collected(await claude.messages.create({ model, messages, max_tokens: 8, stream: true })),
  "anthropic: too long": () => claude.messages.create({ model, messages: long, max_tokens: 8 }),
  "ollama: list": async () => (await ollama.list()).models.map((m) => m.name),
  "ollama: show": async () => (await ollama.show({ model })).capabilities,
  "ollama: chat": async () => {
    const said = await ollama.chat({ model, messages, options });
    return [said.done, said.message.content !== "", said.prompt_eval_count];
  },
  "ollama: stream": async () => collected(await ollama.chat({ model, messages, options, stream: true })),
  "ollama: generate": async () => (await ollama.generate({ model, prompt: "Once", options })).response !== "",
  "ollama: too long": () => ollama.chat({ model, messages: long }),
  "ollama: nobody": () => ollama.chat({ model: "nobody", messages }),
};
const found = {};
for (const [name, call] of Object.entries(calls)) {
  if (!name.includes(only)) continue;
  try {
    found[name] = await call();
  } catch (error) {
    found[name] = [error.constructor.name, error.status ?? error.status_code ?? null, error.code ?? null];
  }
}
process.stdout.write(JSON.stringify(found));
