// A camera's scores as an SVG, redrawn each second: the mean as a line, the minimum as a shade below it.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 120;
const LEFT = 24, RIGHT = 6, TOP = 8, BOTTOM = 18;

function make(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

export function clock(seconds, withSeconds) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(seconds * 1000).toLocaleTimeString([], options);
}

// At most one point for every two pixels; a point is [time, mean, minimum].
function thinned(points, from, perBin) {
  const thin = [];
  let bin = null, sum = 0, count = 0, low = 1, first = 0;
  const flush = () => { if (count) thin.push([first, sum / count, low]); };
  for (const [at, mean, lowest] of points) {
    const next = Math.floor((at - from) / perBin);
    if (next !== bin) {
      flush();
      [bin, sum, count, low, first] = [next, 0, 0, 1, at];
    }
    sum += mean;
    count += 1;
    low = Math.min(low, lowest);
  }
  flush();
  return thin;
}

// The known stretches of what is usual between two times: arrays of [time, centre, spread].
function usualParts(usual, from, now) {
  if (!usual) return [];
  const { bins, bin_s: size } = usual;
  const at = (time) => { // between the middles of two bins, as the alarms see it
    const position = time / size - 0.5;
    const low = Math.floor(position);
    const here = bins[Math.floor(time / size) % bins.length];
    const [one, two] = [low, low + 1].map((index) => bins[((index % bins.length) + bins.length) % bins.length] ?? here);
    if (!here) return null;
    const part = position - low;
    return [time, (1 - part) * one[0] + part * two[0], Math.max(one[1], two[1])];
  };
  const times = [from];
  for (let time = (Math.floor((2 * from) / size) + 1) * (size / 2); time < now; time += size / 2) times.push(time);
  times.push(now);
  const parts = [[]];
  for (const point of times.map(at)) {
    if (point) parts[parts.length - 1].push(point);
    else if (parts[parts.length - 1].length) parts.push([]);
  }
  return parts.filter((part) => part.length > 1);
}

export class Chart {
  constructor(svg, readout) {
    this.svg = svg;
    this.readout = readout;
    this.width = 0;
    this.pointer = null;
    this.given = null;
    new ResizeObserver(() => this.redraw()).observe(svg);
    svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    svg.addEventListener("pointerleave", () => this.point(null));
  }

  point(x) {
    this.pointer = x;
    this.redraw();
  }

  redraw() {
    if (this.given) this.draw(...this.given);
  }

  // points: sorted [time, mean, minimum]; step: seconds between them; limits: scores that raise an alert;
  // usual: what is usual for each part of the day, or null.
  draw(points, step, now, span, limits, usual) {
    this.given = [points, step, now, span, limits, usual];
    const width = this.svg.clientWidth;
    if (!width) return;
    const from = now - span;
    const x = (at) => LEFT + ((at - from) / span) * (width - LEFT - RIGHT);
    const y = (score) => TOP + (1 - score) * (HEIGHT - TOP - BOTTOM);
    const seen = points.filter(([at]) => at >= from);
    const perBin = Math.max(step, (2 * span) / (width - LEFT - RIGHT));
    const parts = [];

    for (const score of [0, 0.5, 1]) {
      parts.push(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(score), y2: y(score) }));
      parts.push(make("text", { x: LEFT - 6, y: y(score) + 4, "text-anchor": "end" }, score === 0.5 ? ".5" : String(score)));
    }
    for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      const at = from + share * span;
      const words = share === 1 ? "now" : clock(at, false);
      parts.push(make("text", { x: x(at), y: HEIGHT - 3, "text-anchor": anchor }, words));
    }

    for (const part of usualParts(usual, from, now)) {
      const above = part.map(([at, centre, spread]) => `${x(at).toFixed(1)} ${y(Math.min(1, centre + 2 * spread)).toFixed(1)}`);
      const below = part.map(([at, centre, spread]) => `${x(at).toFixed(1)} ${y(Math.max(0, centre - 2 * spread)).toFixed(1)}`);
      parts.push(make("path", { class: "usual", d: `M${above.join("L")}L${below.reverse().join("L")}Z` }));
    }

    // A gap: no score for longer than is usual for this camera.
    const drawn = thinned(seen, from, perBin);
    const steps = drawn.slice(1).map(([at], index) => at - drawn[index][0]).sort((a, b) => a - b);
    const gap = Math.max(3 * step, 3 * perBin, 3 * (steps[steps.length >> 1] ?? 0));
    const runs = [];
    for (const point of drawn) {
      const run = runs[runs.length - 1];
      if (run && point[0] - run[run.length - 1][0] <= gap) run.push(point);
      else runs.push([point]);
    }
    for (const run of runs) {
      const line = run.map(([at, mean], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(mean).toFixed(1)}`).join("");
      const below = run.map(([at, , low]) => `L${x(at).toFixed(1)} ${y(low).toFixed(1)}`).reverse().join("");
      if (run.length > 1) parts.push(make("path", { class: "band", d: `${line}${below}Z` }));
      parts.push(make("path", { class: "mean", d: run.length > 1 ? line : `${line}h.01` }));
    }
    const lines = Object.entries(limits).sort((one, other) => other[1] - one[1]);
    lines.forEach(([kind, limit], index) => {
      const at = y(limit);
      parts.push(make("line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
      const words = `${kind === "low" ? "alert under" : "drop alert under"} ${limit.toFixed(2)}`;
      // The upper label is above its line and the lower one below, if there is room.
      const below = (index > 0 && at < HEIGHT - BOTTOM - 14) || at < TOP + 16;
      parts.push(make("text", { class: "of-limit", x: LEFT + 4, y: at + (below ? 13 : -4) }, words));
    });
    const last = drawn[drawn.length - 1];
    if (last) parts.push(make("circle", { class: "dot", cx: x(last[0]), cy: y(last[1]), r: 3 }));

    this.readout.textContent = "";
    if (this.pointer !== null && drawn.length) {
      const wanted = from + ((this.pointer - LEFT) / (width - LEFT - RIGHT)) * span;
      const near = drawn.reduce((a, b) => (Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a));
      parts.push(make("line", { class: "cross", x1: x(near[0]), x2: x(near[0]), y1: TOP, y2: HEIGHT - BOTTOM }));
      this.readout.textContent = `${clock(near[0], true)}  ${near[1].toFixed(3)}, lowest ${near[2].toFixed(3)}`;
    }

    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(...parts);
    const minutes = span < 3600 ? `${span / 60} minutes` : span === 3600 ? "hour" : `${span / 3600} hours`;
    this.svg.setAttribute("aria-label", drawn.length
      ? `Score over the last ${minutes}: now ${last[1].toFixed(2)}, ` +
        `lowest ${Math.min(...drawn.map((p) => p[2])).toFixed(2)}, highest ${Math.max(...drawn.map((p) => p[1])).toFixed(2)}`
      : `No score in the last ${minutes}`);
  }
}
