// The page for labelling. Names of files, cameras and raters are set as text, never as markup.

import { setUpLogin, showLogin } from "./login.js";

const RETRY_MS = 2000;
const WATCH_MS = 1000; // between looks at a training that runs
const PAIR = [["First is better", "1", 1], ["Alike", "2", 0.5], ["Second is better", "3", 0]];

const find = (id) => document.getElementById(id);
const node = (name, text = "", properties = {}) => Object.assign(document.createElement(name), { textContent: text }, properties);
const stored = (key, value) => {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { /* private windows may have none */ }
  return null;
};

let state = null; // as the server last told it
let mode = stored("mode") === "pair" ? "pair" : "scale";
let busy = false;
let intro = false;
let watching = 0;
let token = ""; // to send answers; a cookie may only read
try { token = sessionStorage.getItem("token") || ""; } catch { /* as above */ }

const rater = () => find("rater").value.trim() || "me";
const picture = (name, small = false) => `v1/label/frames/${encodeURIComponent(name)}${small ? "?small_one=1" : ""}`;

// The server

async function ask(path, data) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = data === undefined ? { headers } : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(data) };
  const answer = await fetch(path, { cache: "no-store", ...options });
  if (answer.status === 401) {
    askForToken();
    throw new Error("token");
  }
  const told = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(told.detail || `status ${answer.status}`), { final: answer.status === 422 });
  return told;
}

function complain(text) {
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

async function load(image) {
  const query = new URLSearchParams({ rater: rater(), mode, ...(image ? { image } : {}) });
  try {
    show(await ask(`v1/label?${query}`));
    complain("");
  } catch (error) {
    if (error.message === "token") return;
    complain(`The server does not answer (${error.message}). Trying again.`);
    setTimeout(() => load(image), RETRY_MS);
  }
}

// An answer is repeated until the server has it: its id makes it count once.
async function send(kind, images, value) {
  if (busy) return;
  busy = true;
  document.body.dataset.busy = "yes";
  const data = { id: newId(), kind, rater: rater(), images, value, mode };
  for (;;) {
    try {
      show(await ask("v1/label", data));
      complain("");
      break;
    } catch (error) {
      if (error.message === "token") break;
      complain(error.final ? error.message : `Not saved yet (${error.message}). Trying again: leave the page open.`);
      if (error.final) break;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
  busy = false;
  delete document.body.dataset.busy;
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// What is shown

function show(told) {
  state = told;
  if (state.first && !stored(`seen ${rater()}`)) intro = true;
  find("login").hidden = true;
  find("main").hidden = false;
  find("logout").hidden = !state.login;
  const task = state.task;
  find("intro").hidden = !intro;
  find("sitting").hidden = intro || !task;
  find("end").hidden = intro || (Boolean(task) && state.labels < 8);
  find("progress").max = Math.max(1, state.total);
  find("progress").value = state.done;
  const what = mode === "pair" ? "comparisons" : "pictures";
  find("summary").textContent = `${state.done} of ${state.total} ${what}`;
  find("undo").disabled = find("undo-end").disabled = !state.can_undo;
  if (intro) showIntro();
  if (task) showTask(task);
  showEnd();
  showLearning(state.training);
  for (const name of state.following) new Image().src = picture(name);
  find("foot").textContent = `${state.pictures} pictures collected, ${state.chosen} chosen to label, ${state.labels} labelled`;
}

function showIntro() {
  find("range-shown").hidden = !state.range.length;
  find("range").replaceChildren(...state.range.map((name) => node("img", "", { src: picture(name, true), alt: "" })));
}

function showTask(task) {
  const same = find("stage").dataset.task === task.join("\n");
  if (!same) {
    find("stage").dataset.task = task.join("\n");
    find("stage").dataset.count = task.length;
    find("stage").replaceChildren(...task.map((name, index) => {
      const look = node("div", "", { className: "look", tabIndex: 0 });
      const image = node("img", "", { src: picture(name), alt: `Picture ${index + 1}` });
      image.addEventListener("error", () => complain(`${name} cannot be shown; say that you cannot tell.`));
      look.append(image);
      if (task.length === 2) look.append(node("span", index ? "Second" : "First", { className: "side" }));
      look.addEventListener("click", (event) => zoom(!full(), event, look));
      look.addEventListener("scroll", () => follow(look));
      return look;
    }));
    zoom(false);
  }
  const keys = mode === "pair" ? PAIR : state.scale.map((word, index) => [word, String(index + 1), index + 1]);
  find("answers").dataset.mode = mode;
  find("answers").replaceChildren(...keys.map(([word, key, value], index) => {
    const button = node("button", "", { type: "button" });
    button.dataset.value = value;
    const anchor = mode === "scale" ? state.anchors[index] : null;
    if (anchor && anchor !== task[0]) button.append(node("img", "", { src: picture(anchor, true), alt: "", title: "You called this so" }));
    button.append(node("span", word), node("kbd", key));
    button.addEventListener("click", () => choose(value));
    return button;
  }));
}

function showEnd() {
  const { task, labels, total, done } = state;
  find("end-title").textContent = task ? "Enough to train" : `All ${total} done`;
  const words = [`${labels} label${labels === 1 ? "" : "s"} in labels.csv.`];
  words.push(task ? `${total - done} are left; more labels make a better model, and fifty are a good number.` : "Train now, or label more.");
  const cannot = labels < state.chosen && !task && mode === "scale" ? ` ${state.chosen - labels} could not be told.` : "";
  for (const [name, [passed, given]] of Object.entries(state.attention)) {
    words.push(`${name === rater() ? "You" : name} told ${passed} of ${given} blurred copies from their originals${passed < 0.8 * given ? ": look at these labels again" : ""}.`);
  }
  find("end-words").textContent = words.join(" ") + cannot;
  find("add").disabled = state.pictures <= state.chosen;
  find("train").disabled = labels < 8 || running(state.training);
  const percent = (value) => (value === null ? "–" : `${Math.round(value * 100)} %`);
  find("agreement").hidden = !state.agreement.length;
  find("agreement").querySelector("tbody").replaceChildren(...state.agreement.map((one) => {
    const row = node("tr");
    const cells = [one.raters.join(", "), one.pictures, one.srcc === null ? "–" : one.srcc.toFixed(2), one.pairs, percent(one.alike)];
    row.append(...cells.map((cell) => node("td", String(cell))));
    return row;
  }));
}

const running = (training) => ["train", "export", "compare", "look"].includes(training.phase);

function showLearning(training) {
  const titles = { train: "Training", export: "Exporting, through the gate", compare: "Comparing before and after", look: "Looking at the other pictures", done: "The new model is ready", failed: "It failed" };
  find("learning").hidden = training.phase === "idle" || intro;
  find("learning-title").textContent = titles[training.phase] || "";
  find("learning-lines").textContent = training.lines.join("\n");
  find("learning-lines").hidden = training.phase === "done" || !training.lines.length;
  find("result").hidden = training.phase !== "done";
  find("train").disabled = running(training) || !state || state.labels < 8;
  if (training.phase === "done") showResult(training.result);
  if (running(training) && !watching) watching = setTimeout(watchLearning, WATCH_MS);
}

async function watchLearning() {
  watching = 0;
  try {
    showLearning(await ask("v1/label/training"));
  } catch {
    watching = setTimeout(watchLearning, RETRY_MS);
  }
}

function showResult(result) {
  const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
  const sure = result.interval ? ` (95 % interval ${result.interval.map(number).join(" to ")})` : "";
  find("result-words").textContent =
    `${result.bundle} (model ${result.id}) learned from ${result.labels} labels. How well it ranks your own frames, from -1 to 1: ` +
    `${number(result.honest)}${sure} on frames left out of training, where the start had ${number(result.honest_before)}; ` +
    `on the labelled frames themselves ${number(result.srcc_before)} before and ${number(result.srcc_after)} after. ` +
    "A grmp-edge watch that runs with this bundle takes it over by itself.";
  find("commands").textContent = [...result.commands, `grmp-edge watch ${result.bundle} CAMERA`].join("\n");
  find("worst").replaceChildren(...result.worst.map((row) => {
    const button = node("button", "", { type: "button" });
    button.append(node("img", "", { src: picture(row.image, true), alt: row.image }));
    button.append(node("span", `you ${row.mos.toFixed(1)}, model ${(row.mos + row.off).toFixed(1)}`));
    button.addEventListener("click", () => {
      setMode("scale");
      load(row.image);
      scrollTo({ top: 0 });
    });
    return button;
  }));
}

// Full size: one pixel of the picture on one of the screen. Two pictures show the same part.

const looks = () => [...document.querySelectorAll(".look")];
const full = () => looks().some((look) => look.dataset.full === "yes");

function zoom(on, event, at) {
  const box = at ? at.getBoundingClientRect() : null;
  const shown = at ? at.querySelector("img") : null;
  const place = box && shown.naturalWidth ? inPicture(event, box, shown) : [0.5, 0.5];
  for (const look of looks()) {
    const image = look.querySelector("img");
    look.dataset.full = on ? "yes" : "no";
    image.style.width = on ? `${image.naturalWidth / devicePixelRatio}px` : "";
    if (on) {
      look.scrollLeft = place[0] * look.scrollWidth - look.clientWidth / 2;
      look.scrollTop = place[1] * look.scrollHeight - look.clientHeight / 2;
    }
  }
  find("zoom").setAttribute("aria-pressed", String(on));
}

function inPicture(event, box, image) {
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const part = (at, start, side, size) => Math.min(1, Math.max(0, (at - start - (side - size * scale) / 2) / (size * scale)));
  return [part(event.clientX, box.left, box.width, image.naturalWidth), part(event.clientY, box.top, box.height, image.naturalHeight)];
}

function follow(look) {
  if (!full()) return;
  const part = (at, whole, shown) => (whole > shown ? at / (whole - shown) : 0.5);
  const x = part(look.scrollLeft, look.scrollWidth, look.clientWidth);
  const y = part(look.scrollTop, look.scrollHeight, look.clientHeight);
  for (const other of looks()) {
    if (other === look) continue;
    const left = Math.round(x * (other.scrollWidth - other.clientWidth));
    const top = Math.round(y * (other.scrollHeight - other.clientHeight));
    if (Math.abs(other.scrollLeft - left) > 1 || Math.abs(other.scrollTop - top) > 1) other.scrollTo({ left, top });
  }
}

// Answers

function choose(value) {
  if (!state || !state.task || intro || busy) return;
  const button = [...find("answers").children].find((one) => Number(one.dataset.value) === value);
  if (button) button.classList.add("chosen");
  send(mode, state.task, value);
}
const skip = () => state && state.task && !intro && send("skip", state.task, null);
const unsure = () => state && state.task && !intro && send(mode, state.task, null);
const undo = () => state && state.can_undo && !intro && send("undo", [], null);

function setMode(next) {
  mode = next;
  stored("mode", mode);
  document.querySelector(`#mode input[value="${mode}"]`).checked = true;
  find("stage").dataset.task = "";
}

function askForToken() {
  find("main").hidden = true;
  showLogin();
}

find("undo").addEventListener("click", undo);
find("undo-end").addEventListener("click", undo);
find("skip").addEventListener("click", skip);
find("unsure").addEventListener("click", unsure);
find("zoom").addEventListener("click", () => zoom(!full()));
find("help").addEventListener("click", () => { intro = !intro; if (state) show(state); });
find("begin").addEventListener("click", () => { intro = false; stored(`seen ${rater()}`, "yes"); if (state) show(state); });
find("rater").addEventListener("change", () => { stored("rater", rater()); find("stage").dataset.task = ""; load(); });
find("mode").addEventListener("change", (event) => { setMode(event.target.value); load(); });
find("add").addEventListener("click", async () => {
  find("add").disabled = true;
  find("end-words").textContent = "Choosing. After a training the model looks at every picture first, which may take a minute.";
  try { await ask("v1/label/more", { count: 20 }); complain(""); } catch (error) { complain(error.message); }
  load();
});
find("train").addEventListener("click", async () => {
  try { showLearning(await ask("v1/label/training", {})); complain(""); } catch (error) { complain(error.message); }
});
setUpLogin((given) => {
  token = given;
  try { sessionStorage.setItem("token", token); } catch { /* it is asked for again */ }
  load();
}, () => {
  token = "";
  try { sessionStorage.removeItem("token"); } catch { /* as above */ }
  askForToken();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const key = event.key.toLowerCase();
  const values = mode === "pair" ? { 1: 1, 2: 0.5, 3: 0, arrowleft: 1, arrowright: 0, "=": 0.5 } : { 1: 1, 2: 2, 3: 3, 4: 4, 5: 5 };
  const actions = { u: undo, backspace: undo, s: skip, x: unsure, z: () => zoom(!full()) };
  if (!(full() && key.startsWith("arrow")) && key in values) choose(values[key]);
  else if (key in actions) actions[key]();
  else return;
  event.preventDefault();
});

find("rater").value = stored("rater") || "me";
setMode(mode);
load();
