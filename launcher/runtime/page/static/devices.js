// RAM, its nodes and each card: who is planned there and for what, what is measured, what is free, what may be up together.
import { call, known } from "./api.js";
import { bytes, h, put, svg } from "./dom.js";

const PARTS = { model: "weights", kv: "K/V", recurrent: "recurrent state", output: "output", compute: "compute", draft: "draft", projector: "projector", overhead: "overhead", growth: "growth to peak" };
const NAMED = 12;
const DOWN = ["stopped", "failed"];

export function devices(main, onLeave) {
  const body = h("div");
  main.append(h("h2", {}, "Devices"), body);
  let now = { gpus: [], ram: null, nodes: [] };
  let shown = "";
  const ask = async () => { try { now = await call("/v1/launch/gpus"); draw(); } catch { /* the stream says that the fleet is away */ } };
  const draw = () => {
    if (!known.fleet) return;
    const drawn = JSON.stringify([now, known.fleet.devices, known.fleet.servers.length, [...known.processes.values()].map((p) => [p.name, p.state, p.measured_bytes])]);
    if (drawn === shown) return; // nothing that is seen here changed: focus and scroll positions stay
    shown = drawn;
    put(body, known.fleet.devices.map((device) => section(device, now)), together());
  };
  const every = setInterval(ask, 5000);
  ask();
  onLeave(() => clearInterval(every));
  return (told) => { if (["status", "processes", "fleet", "all"].some((what) => told.has(what))) draw(); };
}

// What a server takes of a device, by component; a manifest of an older launch says only what is mapped and what is not.
function partsOf(need) {
  const parts = Object.keys(need.parts || {}).length ? { ...need.parts } : { model: need.file_bytes, overhead: need.committed_bytes };
  const growth = need.peak_bytes - need.committed_bytes;
  if (growth > 0) parts.growth = growth;
  return parts;
}

// What is planned on a NUMA node: by server after start, and how much more the worst set may take.
function held(node) {
  const servers = Object.entries(node.servers || {}).map(([name, size]) => ({ name, size }));
  const services = node.planned_bytes - servers.reduce((size, one) => size + one.size, 0);
  return [...servers, { name: "services", size: services }, { name: "more, at most together", size: Math.max(0, node.peak_bytes - node.planned_bytes) }].filter((one) => one.size);
}

const total = (parts) => Object.values(parts).reduce((size, part) => size + part, 0);

function section(device, now) {
  const planned = known.fleet.servers.flatMap((server) => {
    const need = server.memory.find((one) => one.device === device.name);
    return need ? [{ name: server.name, parts: partsOf(need) }] : [];
  });
  const up = planned.filter((one) => !DOWN.includes(known.processes.get(one.name)?.state));
  const measured = [...known.processes.values()].map((process) => ({ name: process.name, size: process.measured_bytes[device.name] || 0 })).filter((one) => one.size);
  const peak = up.reduce((size, one) => size + total(one.parts), 0);
  const used = peak - up.reduce((size, one) => size + (one.parts.growth || 0), 0);
  const taken = measured.reduce((size, one) => size + one.size, 0);
  const components = Object.keys(PARTS).map((part) => ({ name: PARTS[part], size: up.reduce((size, one) => size + (one.parts[part] || 0), 0) })).filter((one) => one.size);
  const gpu = now.gpus.find((one) => one.name === device.name);
  const free = device.kind === "ram" ? now.ram?.free_bytes : gpu && gpu.total_bytes - gpu.used_bytes;
  const whole = device.capacity_bytes || 1;
  const columns = Object.keys(PARTS).filter((part) => planned.some((one) => one.parts[part]));
  return h("section", { class: "card" },
    h("h3", {}, `${device.kind === "ram" ? "RAM" : device.name}: ${bytes(device.capacity_bytes)}, ${bytes(device.budget_bytes)} for the fleet`),
    gpu ? h("p", {}, `${gpu.model}: ${bytes(gpu.used_bytes)} used${gpu.busy_percent === null ? "" : `, ${gpu.busy_percent} % busy`}${gpu.celsius === null ? "" : `, ${gpu.celsius} °C`}${gpu.watts === null ? "" : `, ${gpu.watts.toFixed(0)} W`}`) : null,
    h("dl", { class: "figures" }, [
      ["Planned now", bytes(used)], ["Its peak", bytes(peak)], ["Measured", bytes(taken)], ["At most together", bytes(device.worst_bytes)],
      device.budget_bytes < peak ? ["Over the budget", bytes(peak - device.budget_bytes)] : ["Budget left then", bytes(device.budget_bytes - peak)], ["Free on the machine", bytes(free)],
    ].map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    bar("Planned, by server", up.map((one) => ({ name: one.name, size: total(one.parts) })), whole, device.budget_bytes),
    bar("Planned, by component", components, whole, device.budget_bytes),
    bar("Measured, by server", measured, whole, device.budget_bytes),
    (device.nodes || []).map((node) => {
      const seen = now.nodes.find((one) => one.id === node.id);
      return bar(`NUMA node ${node.id}: ${bytes(node.capacity_bytes)}${seen ? `, ${bytes(seen.free_bytes)} free now` : ""}`,
        held(node), node.capacity_bytes || 1);
    }),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Memory on ${device.name}` },
      h("table", {}, h("thead", {}, h("tr", {}, ["Server", "State", ...columns.map((part) => PARTS[part]), "Peak", "Measured"].map((title, at) => h("th", { scope: "col", class: at > 1 ? "number" : null }, title)))),
        h("tbody", {}, planned.map((one) => h("tr", {}, h("th", { scope: "row", title: one.name }, one.name), h("td", {}, known.processes.get(one.name)?.state || ""), columns.map((part) => h("td", { class: "number" }, one.parts[part] ? bytes(one.parts[part]) : "")),
          h("td", { class: "number" }, bytes(total(one.parts))), h("td", { class: "number" }, bytes(measured.find((other) => other.name === one.name)?.size))))))));
}

function bar(title, parts, whole, limit) {
  let at = 0;
  const named = parts.slice(0, NAMED);
  const rest = parts.slice(NAMED);
  const others = rest.length ? `and ${rest.length} more: ${bytes(rest.reduce((size, part) => size + part.size, 0))}` : "";
  const said = parts.map((part) => `${part.name} ${bytes(part.size)}`).join(", ");
  const boxes = parts.map((part, index) => {
    const box = svg("rect", { x: at, y: 0, width: 100 * part.size / whole, height: 10, class: `p${index % 8 + 1}` }, svg("title", {}, `${part.name}: ${bytes(part.size)}`));
    at += 100 * part.size / whole;
    return box;
  });
  return [h("p", { class: "soft" }, title), svg("svg", { class: "bars", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${said || "nothing"}` }, boxes,
    limit ? svg("line", { x1: 100 * limit / whole, x2: 100 * limit / whole, y1: 0, y2: 10, class: "limit" }) : null),
  h("ul", { class: "keys" }, named.map((part, index) => h("li", { class: `key p${index % 8 + 1}` }, `${part.name} ${bytes(part.size)}`)), others ? h("li", {}, others) : null,
    parts.length ? null : h("li", {}, "nothing"), limit ? h("li", { class: "key limit" }, `budget ${bytes(limit)}`) : null)];
}

function together() {
  const groups = new Map();
  const all = [...known.fleet.servers, ...known.fleet.services];
  for (const one of all) if (one.exclusive) groups.set(one.exclusive, [...(groups.get(one.exclusive) || []), one.name]);
  const always = all.filter((one) => one.start === "boot" && !one.exclusive).map((one) => one.name);
  const demand = all.filter((one) => one.start === "demand" && !one.exclusive).map((one) => one.name);
  return h("section", {}, h("h2", {}, "What may be up together"), h("ul", {},
    always.length ? h("li", {}, `Always: ${always.join(", ")}`) : null,
    [...groups].map(([group, names]) => h("li", {}, `One of ${names.join(", ")} (group ${group})`)),
    demand.length ? h("li", {}, `On demand, while there is room: ${demand.join(", ")}`) : null));
}
