// Scores pictures as grmp-edge does: the same views, the same graph, the same sums. Runs as a worker of the page.
import * as ort from "./ort/ort.wasm.min.mjs";
import { aggregate, sigmoid, viewsOf } from "./views.js";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

let bundle = null;
let session = null;

const digest = async (data) => {
  if (!crypto.subtle) return null; // only over https and on this machine; the transport vouches elsewhere
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
};

async function fetched(name, listed) {
  const answer = await fetch(new URL(`./bundle/${name}`, import.meta.url));
  if (!answer.ok) throw new Error(`bundle/${name}: ${answer.status}`);
  const data = await answer.arrayBuffer();
  const sha256 = listed && (await digest(data));
  if (sha256 && sha256 !== listed.sha256) throw new Error(`bundle/${name}: damaged`);
  return data;
}

async function open() {
  bundle = JSON.parse(new TextDecoder().decode(await fetched("bundle.json")));
  if (bundle.schema_version > 3) throw new Error(`a bundle of schema ${bundle.schema_version}; this page reads 3`);
  const graph = bundle.graphs.fp32;
  if (!graph) throw new Error("the bundle has no fp32 graph");
  const names = Object.keys(bundle.files ?? {}).filter((name) => bundle.files[name].graphs.includes("fp32"));
  const [model, ...others] = await Promise.all([fetched(graph.file, graph), ...names.map((name) => fetched(name, bundle.files[name]))]);
  session = await ort.InferenceSession.create(model, {
    executionProviders: ["wasm"],
    externalData: names.map((name, index) => ({ path: name, data: others[index] })),
  });
  return { id: bundle.id, causes: bundle.causes ?? [], mos: bundle.mos };
}

// A Blob or an ImageBitmap to straight 8-bit RGBA on white, as grmp-edge flattens what is transparent.
async function pixelsOf(source) {
  const bitmap = source instanceof Blob
    ? await createImageBitmap(source, { colorSpaceConversion: "none", imageOrientation: "from-image" })
    : source;
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error(`${width} x ${height} pixels are too many for this browser`);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

async function score(source) {
  const start = performance.now();
  const picture = await pixelsOf(source);
  const { resize, crop } = bundle.preprocess;
  const { pixels, boxes } = viewsOf(picture, resize, crop, bundle.views?.native ?? 0);
  const count = 1 + boxes.length;
  const graph = bundle.graphs.fp32;
  const output = graph.logits || graph.output;
  const feeds = { [graph.input]: new ort.Tensor("uint8", pixels, [count, crop, crop, 3]) };
  const { data, dims } = (await session.run(feeds, [output]))[output];
  const columns = graph.logits ? dims[1] : 1;
  const column = (at) => Array.from({ length: count }, (_, view) => data[view * columns + at]);
  const { whole, native, shift } = bundle.views?.aggregate ?? { whole: 1, native: 0, shift: 0 };
  const value = graph.logits ? sigmoid(aggregate(column(0), whole, native, shift)) : data[0];
  const causes = (bundle.causes ?? []).map((name, at) => [name, sigmoid(aggregate(column(at + 1), 0.5, 0.5, 0))]);
  return {
    value,
    mos: bundle.mos ? bundle.mos.low + value * (bundle.mos.high - bundle.mos.low) : null,
    causes: Object.fromEntries(causes),
    width: picture.width,
    height: picture.height,
    ms: performance.now() - start,
  };
}

// One at a time: the session must not be run twice at once.
let last = Promise.resolve();
self.addEventListener("message", ({ data: { number, name, source } }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ number, result: name === "open" ? await open() : await score(source) });
    } catch (error) {
      self.postMessage({ number, error: String(error?.message ?? error) });
    }
  });
});
