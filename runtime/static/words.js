// Numbers, states and events as words.

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export function count(value) {
  if (value < 100000) return value.toLocaleString("en");
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);
}

// An error begins with the camera's name, which the heading shows already.
export function without(name, detail) {
  return detail.startsWith(`${name}: `) ? detail.slice(name.length + 2) : detail;
}

// low_contrast: "low contrast"
export function causeWords(cause) {
  return cause ? cause.replaceAll("_", " ") : "";
}

const STATES = { not_started: "starting", running: "running", restarting: "reconnecting", error: "error", stopped: "stopped" };
const PICTURES = { frozen: "frozen picture", black: "black picture", no_signal: "no signal" };
const ALERTS = {
  low: "low score", drop: "score dropped", trend: "slowly worse", part: "a part is worse", offline: "camera lost", black: "black picture",
  frozen: "frozen picture", no_signal: "no signal", covered: "covered", moved: "moved", blurred: "out of focus",
  dark: "too dark", bright: "too bright",
};

// Of daily levels, [time, difference from normal]: the last days as words, if they differ from normal.
export function levelWords(levels) {
  if (!levels || levels.length < 3) return "";
  const last = levels.slice(-3).map(([, level]) => level).sort((a, b) => a - b)[1];
  if (Math.abs(last) < 0.02) return "";
  return `${Math.abs(last).toFixed(2)} ${last < 0 ? "below" : "above"} normal in the last days`;
}

export function badge(camera) {
  if (camera.state !== "running") {
    const level = { error: "bad", restarting: "warn" }[camera.state] ?? "dim";
    return [level, `${level === "dim" ? "○" : "▲"} ${STATES[camera.state] ?? camera.state}`];
  }
  if (camera.alerts.length) return ["bad", `▲ ${camera.alerts.map((kind) => ALERTS[kind] ?? kind).join(", ")}`];
  if (camera.picture !== "ok") return ["bad", `▲ ${PICTURES[camera.picture] ?? camera.picture}`];
  return ["good", "● running"];
}

export function eventWords(event) {
  if (event.event === "alert") {
    if (event.kind !== "low" && event.kind !== "drop" || event.value === undefined || event.limit === undefined) {
      const words = (ALERTS[event.kind] ?? event.kind) + (event.detail ? `: ${without(event.camera, event.detail)}` : "");
      return event.raised ? ["bad", `Alert: ${words}`] : ["good", `Alert over: ${words}`];
    }
    const what = event.kind === "low" ? "score" : "score dropped to";
    const value = event.value.toFixed(3);
    return event.raised
      ? ["bad", `Alert: ${what} ${value}, limit ${event.limit.toFixed(2)}, for ${duration(event.since_s)}${event.cause ? `: ${causeWords(event.cause)}` : ""}`]
      : ["good", `Alert over: score ${value}`];
  }
  if (event.state === "running") {
    return event.picture === "ok" ? ["good", "Running"] : ["bad", `Running: ${PICTURES[event.picture] ?? event.picture}`];
  }
  const level = { error: "bad", restarting: "warn" }[event.state] ?? "dim";
  const words = STATES[event.state] ?? event.state;
  return [level, words[0].toUpperCase() + words.slice(1) + (event.detail ? `: ${without(event.camera, event.detail)}` : "")];
}
