// The page to try: a dropped picture or the camera, scored by the worker in model.js.
import { Chart } from "./chart.js";
import { causeWords } from "./words.js";

const SPAN_S = 60; // of the chart
const find = (id) => document.getElementById(id);
const worker = new Worker("model.js", { type: "module" });
const waiting = new Map();
const chart = new Chart(find("chart"), find("readout"));
const points = [];
let number = 0;
let stream = null;

worker.addEventListener("message", ({ data }) => {
  const { resolve, reject } = waiting.get(data.number);
  waiting.delete(data.number);
  if (data.error === undefined) resolve(data.result);
  else reject(new Error(data.error));
});
worker.addEventListener("error", (event) => complain(`The model did not load (${event.message || "its script"}).`));

function ask(name, source, transfer = []) {
  number += 1;
  worker.postMessage({ number, name, source }, transfer);
  return new Promise((resolve, reject) => waiting.set(number, { resolve, reject }));
}

// For whoever tests the page or builds on it.
window.scoreOf = (source) => ask("score", source);

function complain(text) {
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

function show(result, what) {
  find("value").textContent = result.value.toFixed(3);
  find("mos").textContent = result.mos === null ? "" : `MOS ${result.mos.toFixed(2)}`;
  const [cause] = Object.entries(result.causes).sort((one, other) => other[1] - one[1])[0] ?? [];
  find("cause").textContent = cause && result.causes[cause] >= 0.5 ? causeWords(cause) : "";
  find("facts").textContent = `${result.width} × ${result.height}, ${Math.round(result.ms)} ms`;
  find("summary").textContent = what;
  find("causes").replaceChildren(...Object.entries(result.causes).flatMap(([name, value]) => {
    const term = Object.assign(document.createElement("dt"), { textContent: causeWords(name) });
    const meter = Object.assign(document.createElement("meter"), { min: 0, max: 1, high: 0.5, optimum: 0, value });
    meter.setAttribute("aria-label", causeWords(name));
    const words = Object.assign(document.createElement("span"), { textContent: value.toFixed(2) });
    const item = document.createElement("dd");
    item.append(meter, words);
    return [term, item];
  }));
  points.push([Date.now() / 1000, result.value, result.value]);
  while (points.length > 1000) points.shift();
  chart.draw(points, 1, Date.now() / 1000, SPAN_S, {}, null);
}

async function pictures(files) {
  stop();
  for (const file of files) {
    const shown = find("picture");
    URL.revokeObjectURL(shown.src);
    shown.src = URL.createObjectURL(file);
    shown.alt = file.name;
    shown.hidden = false;
    find("blank").hidden = true;
    try {
      show(await ask("score", file), file.name || "a pasted picture");
      complain("");
    } catch (error) {
      complain(`${file.name || "What was pasted"} cannot be scored: ${error.message}`);
    }
  }
}

async function start() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } }, audio: false });
  } catch (error) {
    complain(`No camera: ${error.message}`);
    return;
  }
  complain("");
  const video = find("video");
  video.srcObject = stream;
  video.hidden = false;
  find("picture").hidden = find("blank").hidden = true;
  find("camera").setAttribute("aria-pressed", "true");
  await video.play();
  const mine = stream;
  while (stream === mine) {
    try {
      const frame = await createImageBitmap(video);
      const result = await ask("score", frame, [frame]);
      if (stream === mine) show(result, "Your camera");
    } catch (error) {
      complain(`The camera's picture cannot be scored: ${error.message}`);
      stop();
    }
    await new Promise((resolve) => requestAnimationFrame(resolve)); // nothing while the page is hidden
  }
}

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  find("video").hidden = true;
  find("camera").setAttribute("aria-pressed", "false");
}

find("file").addEventListener("change", (event) => {
  pictures([...event.target.files]);
  event.target.value = "";
});
find("camera").addEventListener("click", () => {
  if (!stream) start();
  else {
    stop();
    find("blank").hidden = false;
  }
});
const given = (items) => [...items].filter((file) => file.type.startsWith("image/"));
document.addEventListener("dragover", (event) => { event.preventDefault(); find("stage").dataset.over = ""; });
document.addEventListener("dragleave", () => { delete find("stage").dataset.over; });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  delete find("stage").dataset.over;
  const files = given(event.dataTransfer.files);
  if (files.length) pictures(files);
  else complain("That is no picture.");
});
document.addEventListener("paste", (event) => {
  const files = given(event.clipboardData.files);
  if (files.length) pictures(files);
});

ask("open").then((bundle) => {
  find("summary").textContent = "Ready";
  find("camera").disabled = !navigator.mediaDevices;
  find("foot").textContent = `grmp-edge, model ${bundle.id}`;
  document.body.dataset.ready = "yes";
}, (error) => complain(`The model did not load: ${error.message}.`));
