// Elements without markup: whatever text comes from a model, a log or a file becomes text, never HTML.
const SVG = "http://www.w3.org/2000/svg";

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && ["value", "checked", "disabled", "hidden", "open"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function put(parent, ...children) {
  parent.replaceChildren(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
}

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (Math.abs(size) >= 1024 && at < units.length - 1) { size /= 1024; at += 1; }
  return `${at && size < 100 ? size.toFixed(1) : Math.round(size)} ${units[at]}`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// Local time, as `launch events` and logs write it.
export function clock(at) {
  const date = new Date(at * 1000);
  const two = (part) => String(part).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

export function speed(rate) {
  return `${rate < 100 ? rate.toFixed(1) : Math.round(rate).toLocaleString()} tokens/s`;
}

export function many(count, one, more = `${one}s`) { return `${count} ${count === 1 ? one : more}`; }

export function sum(values) {
  return Object.values(values || {}).reduce((total, value) => total + value, 0);
}

export function say(text) {
  const place = document.getElementById("said");
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ""; }, 6000);
}

// Asks before it acts, and says what will happen; resolves to whether it may.
export function ask(title, lines, verb) {
  const dialog = document.getElementById("ask");
  const asked = document.activeElement;
  const label = asked?.getAttribute("aria-label");
  dialog.onclose?.(); // of the last question, where its event has yet to come
  return new Promise((resolve) => {
    put(dialog, h("h2", { id: "ask-title" }, title), lines.map((line) => h("p", {}, line)),
      h("div", { class: "row" },
        h("button", { class: "main", onclick: () => dialog.close("yes") }, verb),
        h("button", { onclick: () => dialog.close("") }, "Cancel")));
    dialog.returnValue = "";
    dialog.onclose = () => {
      if (dialog.open) return; // the last question's event comes only now
      dialog.onclose = null;
      // what asked may have been drawn anew meanwhile: the focus goes to what stands in its place
      if (!asked?.isConnected && label) document.querySelector(`main [aria-label="${CSS.escape(label)}"]`)?.focus();
      resolve(dialog.returnValue === "yes");
    };
    dialog.showModal();
  });
}

// Keyed children: an element whose key stays is kept, so that focus and scroll positions stay too.
export function keyed(parent, items, keyOf, make, update) {
  const known = parent.keyed || (parent.keyed = new Map());
  const wanted = new Set();
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    wanted.add(key);
    let element = known.get(key);
    if (!element) { element = make(item); known.set(key, element); }
    if (update) update(element, item);
    if (element !== at) parent.insertBefore(element, at); else at = at.nextElementSibling;
  }
  for (const [key, element] of known) if (!wanted.has(key)) { element.remove(); known.delete(key); }
}
