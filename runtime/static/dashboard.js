// The live page. Whatever comes from a camera (its name, its errors) is set as text, never as markup.

import { Chart, clock } from "./chart.js";
import { setUpLogin, showLogin } from "./login.js";
import { badge, causeWords, count, duration, eventWords, levelWords, without } from "./words.js";

const SILENT_MS = 10000; // a message arrives each second; after this long without one the connection is dead
const RETRY_MS = 5000;
const SURE_MS = 5000; // for the second click
const USUAL_MS = 300000; // what is usual changes by half hours
const ACCEPTED = new Set(["drop", "trend", "part", "covered", "moved", "blurred", "dark", "bright"]);
const CAPACITY = { 1: 3600, 60: 1440 }; // points for each step length, as many as the server stores
const EVENTS = 100;

const find = (id) => document.getElementById(id);
const cards = new Map(); // by id of the camera
let source = null;
let retry = 0;
let lastMessageMs = 0; // Date.now() of the last message
let run = null; // of the server's process and clock
let lastEvent = 0; // number of the last event
let span = 300;
let serverNow = Date.now() / 1000;

function drawn(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// One camera

class Card {
  constructor(id) {
    this.id = id;
    this.points = { 1: [], 60: [] };
    this.node = find("camera").content.firstElementChild.cloneNode(true);
    this.at = (selector) => this.node.querySelector(selector);
    this.picture = this.at(".picture");
    this.number = 0; // of the picture shown
    this.loading = false;
    this.chart = new Chart(this.at(".chart svg"), this.at(".readout"));
    this.picture.addEventListener("load", () => {
      this.loading = false;
      this.picture.hidden = false;
      this.at(".blank").hidden = true;
    });
    this.picture.addEventListener("error", () => { this.loading = false; });
    this.usual = null; // what is usual, by time of day
    this.button = this.at(".accept button");
    this.button.addEventListener("click", () => this.accept());
  }

  show(camera) {
    this.camera = camera;
    const [level, words] = badge(camera);
    const { node, at } = this;
    node.dataset.level = level;
    node.dataset.camera = camera.id;
    node.toggleAttribute("data-old", camera.state !== "running" || camera.picture !== "ok");
    at(".name").textContent = camera.name;
    at(".name").title = camera.name;
    at(".badge").textContent = words;
    at(".detail").textContent = without(camera.name, camera.detail);
    at(".detail").hidden = !camera.detail;
    at(".score strong").textContent = camera.score === null ? "–" : camera.score.toFixed(3);
    at(".score small").textContent = camera.mos === null ? "" : `MOS ${camera.mos.toFixed(2)}`;
    at(".cause").textContent = causeWords(camera.cause);
    at(".cause").title = Object.entries(camera.causes).map(([name, value]) => `${causeWords(name)} ${value.toFixed(2)}`).join("\n");
    at(".limits").textContent = camera.baseline === null ? "" : `usually ${camera.baseline.toFixed(2)}`;
    at(".limits").title = camera.days ? `known for ${camera.days} day${camera.days === 1 ? "" : "s"}` : "of the last minutes; not known by the hour yet";
    at(".slow").textContent = [camera.trend, levelWords(this.usual?.levels)].filter(Boolean).join("; ");
    at(".slow").hidden = !at(".slow").textContent;
    at(".slow").dataset.raised = Boolean(camera.trend);
    at(".doubt").textContent = camera.doubts.join("; ");
    at(".doubt").hidden = !camera.doubts.length;
    at(".accept").hidden = !camera.alerts.some((kind) => ACCEPTED.has(kind));
    const dropped = camera.dropped.replaced + camera.dropped.stale + camera.dropped.expired;
    const values = {
      fps: camera.fps.toFixed(1), age: duration(camera.age_s), scored: count(camera.scored),
      dropped: count(dropped), thinned: count(camera.dropped.thinned), reconnects: count(camera.reconnects),
    };
    for (const field of node.querySelectorAll("dd")) field.textContent = values[field.dataset.key];
    this.showPicture(camera);
    this.showTiles(camera);
  }

  // Asked twice, without a dialog: the second click within some seconds counts.
  async accept() {
    if (!this.sure) {
      this.sure = setTimeout(() => this.calm(), SURE_MS);
      this.button.textContent = "Click again: what it shows now is its normal";
      return;
    }
    this.calm();
    this.button.disabled = true;
    const answer = await fetch(`v1/cameras/${encodeURIComponent(this.id)}/accept`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: "{}",
    }).catch(() => null);
    this.button.disabled = false;
    if (!answer?.ok) this.button.textContent = `Not accepted${answer ? ` (${answer.status})` : ""}; try again`;
    this.loadUsual().catch(() => {});
  }

  calm() {
    clearTimeout(this.sure);
    this.sure = 0;
    this.button.textContent = "This is normal";
  }

  async loadUsual() {
    const answer = await fetch(`v1/cameras/${encodeURIComponent(this.id)}/usual`);
    if (!answer.ok) return;
    this.usual = await answer.json();
    this.draw();
  }

  showTiles({ tiles, size, part }) {
    const svg = this.at("svg.tiles");
    svg.replaceChildren();
    if (!size) return;
    svg.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
    if (part) { // shown without being asked for
      const [x, width] = [part[0] * size[0], part[2] * size[0]], [y, height] = [part[1] * size[1], part[3] * size[1]];
      svg.append(drawn("rect", { x, y, width, height, class: "part" }));
    }
    if (document.body.dataset.tiles !== "on") return;
    for (const [left, top, width, height, score] of tiles) {
      const colour = `hsl(${Math.round(score * 120)} 90% 55%)`; // red is 0, green 1
      const box = { x: left, y: top, width, height, stroke: colour };
      svg.append(drawn("rect", box));
      const text = drawn("text", { x: left + width / 2, y: top + height / 2, "font-size": size[0] / 32, "stroke-width": size[0] / 250 });
      text.textContent = score.toFixed(2);
      svg.append(text);
    }
  }

  showPicture(camera) {
    const { thumbnail, size } = camera;
    this.picture.alt = `Latest picture of ${camera.name}`;
    if (!thumbnail) return;
    const parts = [`${duration(Math.max(0, serverNow - thumbnail.at))} ago`];
    if (size) parts.push(`${size[0]} × ${size[1]}`);
    this.at("figcaption").textContent = parts.join(" · ");
    if (thumbnail.number === this.number || this.loading) return; // one request at a time
    this.number = thumbnail.number;
    this.loading = true;
    this.picture.src = `v1/cameras/${encodeURIComponent(this.id)}/thumbnail.jpg?number=${thumbnail.number}`;
  }

  draw() {
    const step = span > CAPACITY[1] ? 60 : 1;
    this.chart.draw(this.points[step], step, serverNow, span, this.camera.limits, this.usual);
  }

  add(step, fresh) {
    const known = this.points[step];
    const last = known.length ? known[known.length - 1][0] : -Infinity;
    if (fresh.length && fresh[0][0] > last + 0.001) known.push(...fresh);
    else if (fresh.length) {
      const all = new Map([...known, ...fresh].map((point) => [Math.round(point[0] * 1000), point]));
      this.points[step] = [...all.entries()].sort((a, b) => a[0] - b[0]).map(([, point]) => point);
    }
    this.points[step] = this.points[step].slice(-CAPACITY[step]);
  }

  async load(step) {
    const known = this.points[step];
    const since = known.length ? known[known.length - 1][0] : 0;
    const of = run;
    const answer = await fetch(`v1/cameras/${encodeURIComponent(this.id)}/history?since=${since}&step=${step}`);
    if (!answer.ok) return;
    const history = await answer.json();
    if (history.run !== of || run !== of) return; // the server restarted or its clock was set meanwhile
    this.add(step, history.points);
    this.draw();
  }
}

// Events

function showEvents(events) {
  const list = find("events");
  find("log").setAttribute("aria-live", lastEvent ? "polite" : "off"); // events from before the page was opened are not read aloud
  for (const event of events) {
    if (event.number <= lastEvent) continue;
    lastEvent = event.number;
    const node = find("event").content.firstElementChild.cloneNode(true);
    const [level, words] = eventWords(event);
    node.dataset.level = level;
    node.querySelector("time").textContent = clock(event.at, true);
    node.querySelector("time").dateTime = new Date(event.at * 1000).toISOString();
    node.querySelector("strong").textContent = event.camera;
    node.querySelector("p").textContent = words;
    if (event.has_picture) {
      const link = node.querySelector("a");
      link.href = link.firstElementChild.src = `v1/alerts/${event.number}.jpg`;
      link.firstElementChild.alt = `${event.camera} when the alert was raised`;
      link.firstElementChild.addEventListener("error", () => { link.hidden = true; });
      link.hidden = false;
    }
    list.prepend(node);
  }
  while (list.children.length > EVENTS) list.lastElementChild.remove();
  find("no-events").hidden = list.children.length > 0;
}

// The page

function showSummary(cameras) {
  const running = cameras.filter((camera) => camera.state === "running").length;
  const bad = cameras.filter((camera) => badge(camera)[0] === "bad").length;
  const off = cameras.length - running;
  const parts = [`${running} of ${cameras.length} running`];
  const node = find("summary");
  node.textContent = parts.join(", ") + (off || bad ? " · " : "");
  const words = [];
  if (bad) words.push(`${bad} need${bad === 1 ? "s" : ""} a look`);
  else if (off) words.push(`${off} not running`);
  if (words.length) {
    const mark = document.createElement("b");
    mark.textContent = words.join(", ");
    node.append(mark);
  }
  document.title = `${bad ? `(${bad}) ` : ""}Cameras · grmp-edge`;
}

function apply(update) {
  serverNow = update.at;
  const began = update.run !== run;
  if (began) {
    run = update.run;
    lastEvent = 0;
    find("events").replaceChildren();
    for (const card of cards.values()) {
      card.points = { 1: [], 60: [] };
      card.number = 0;
    }
  }
  const known = new Set(update.cameras.map((camera) => camera.id));
  for (const [id, card] of cards) {
    if (!known.has(id)) {
      card.node.remove();
      cards.delete(id);
    }
  }
  for (const camera of update.cameras) {
    let card = cards.get(camera.id);
    if (!card) {
      card = new Card(camera.id);
      cards.set(camera.id, card);
      find("cameras").append(card.node);
    }
    card.show(camera);
    const fresh = update.points[camera.id];
    if (fresh && !catchingUp) card.add(1, fresh);
  }
  if (catchingUp || began) catchUp();
  for (const card of cards.values()) card.draw();
  showEvents(update.events ?? []);
  showSummary(update.cameras);
  find("tiles").hidden = !update.cameras.some((camera) => camera.tiles.length);
  find("logout").hidden = !update.login;
  find("help").hidden = false;
  find("foot").textContent = `grmp-edge ${update.version} · model ${update.model}`;
}

// After a reconnection the missed points are fetched before new ones are added.
let catchingUp = false;

function catchUp() {
  catchingUp = false;
  for (const card of cards.values()) {
    card.load(1).catch(() => {});
    card.loadUsual().catch(() => {});
    if (span > CAPACITY[1]) card.load(60).catch(() => {});
  }
}

setInterval(() => {
  if (!source || span <= CAPACITY[1]) return;
  for (const card of cards.values()) card.load(60).catch(() => {});
}, 60000);

setInterval(() => {
  if (!source) return;
  for (const card of cards.values()) card.loadUsual().catch(() => {});
}, USUAL_MS);

// The connection

function say(state, words) {
  const node = find("link");
  node.dataset.state = state;
  document.body.dataset.link = state; // the page then looks outdated
  if (node.textContent !== words) node.textContent = words;
}

function disconnect() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

function connect() {
  disconnect();
  lastMessageMs = Date.now();
  catchingUp = true;
  source = new EventSource("v1/events");
  source.onmessage = (message) => {
    lastMessageMs = Date.now();
    say("live", "live");
    find("login").hidden = true;
    find("main").hidden = false;
    apply(JSON.parse(message.data));
  };
  source.onerror = () => {
    say("lost", "connection lost, trying again");
    catchingUp = true;
    // Rejected, not broken: the browser does not retry by itself.
    if (source?.readyState === EventSource.CLOSED) {
      disconnect();
      askWhy();
    }
  };
}

async function askWhy() {
  try {
    const answer = await fetch("v1/cameras");
    if (answer.status === 401) {
      askForToken();
      return;
    }
    if (answer.ok) say("lost", "too many pages follow, trying again");
  } catch {
    // The server is down; retried below.
  }
  retry = setTimeout(connect, RETRY_MS);
}

setInterval(() => {
  if (source && Date.now() - lastMessageMs > SILENT_MS) {
    say("lost", "connection lost, trying again");
    connect();
  }
}, 2000);

// A hidden page costs nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    disconnect();
    say("wait", "paused");
  } else if (find("login").hidden) {
    connect();
  }
});

function askForToken() {
  disconnect();
  say("wait", "token needed");
  find("main").hidden = true;
  find("summary").textContent = "";
  showLogin();
}

setUpLogin(() => {
  say("wait", "connecting");
  connect();
}, askForToken);

find("tiles").addEventListener("click", () => {
  const on = document.body.dataset.tiles !== "on";
  document.body.dataset.tiles = on ? "on" : "off";
  find("tiles").setAttribute("aria-pressed", String(on));
  for (const card of cards.values()) card.showTiles(card.camera);
});

find("range").addEventListener("change", (event) => {
  span = Number(event.target.value);
  for (const card of cards.values()) {
    card.draw();
    if (span > CAPACITY[1]) card.load(60).catch(() => {});
  }
});

connect();
