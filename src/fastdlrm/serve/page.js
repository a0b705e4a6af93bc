"use strict";
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HISTORY_S = 300;
let token = sessionStorage.getItem("fastdlrm-token") || "";
let last = 0;
const series = { time: [] };
const snapshots = [];

function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  Object.assign(node, properties);
  node.append(...children);
  return node;
}
function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
async function ask(path, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const options = { headers, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (response.status === 401) $("login").hidden = false;
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}
function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001) return "< 0.001";
  if (size >= 1e6) return (value / 1e6).toPrecision(digits) + " M";
  if (size >= 1e4) return (value / 1e3).toPrecision(digits) + " k";
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const TILES = [
  ["Queries", t => number(t.qps), "/s"],
  ["Samples", t => number(t.rows_per_s), "/s"],
  ["Latency p50", t => number(t.p50_ms), "ms"],
  ["p95", t => number(t.p95_ms), "ms"],
  ["p99", t => number(t.p99_ms), "ms"],
  ["Waiting", t => number(t.queue_rows), "samples"],
  ["Batch fill", t => t.batch_fill === null ? "–" : number(100 * t.batch_fill, 2), "%"],
  ["Failed", t => number(t.errors_per_s), "/s"],
];
const tiles = TILES.map(([name, read, unit]) => {
  const value = document.createTextNode("–");
  $("tiles").append(el("div", { className: "card" },
    el("dt", {}, name), el("dd", {}, value, el("small", {}, unit))));
  return traffic => { value.data = read(traffic); };
});

const CHARTS = [
  { title: "Throughput", unit: "/s", lines: [["qps", "queries", "s1"]], area: true },
  { title: "Latency", unit: "ms",
    lines: [["p50_ms", "p50", "s2"], ["p95_ms", "p95", "s1"], ["p99_ms", "p99", "s3"]] },
  { title: "Samples", unit: "/s", lines: [["rows", "scored", "s4"]], area: true },
  { title: "Queue and failures", unit: "",
    lines: [["queue_rows", "samples waiting", "s6"], ["shed", "shed /s", "s3"],
            ["errors", "failed /s", "s5"]] },
];

function ticks(top) {
  const rough = top / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(f => f * power >= rough) * power;
  const values = [];
  for (let value = 0; value <= top + step * 1e-6; value += step) values.push(value);
  if (values[values.length - 1] < top) values.push(values[values.length - 1] + step);
  return values;
}

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.hover = null;
    this.svg = shape("svg", { role: "img", "aria-label": `${spec.title}, the last minutes` });
    this.values = spec.lines.map(() => el("b"));
    this.when = el("span", { className: "key" });
    const keys = spec.lines.map(([, name, color], at) => el("span", { className: "key" },
      el("i", { style: `background: var(--${color})` }), `${name} `, this.values[at]));
    this.when.style.marginLeft = "auto";
    $("charts").append(el("figure", { className: "card" },
      el("figcaption", {}, el("h3", {}, spec.title), ...keys, this.when), this.svg));
    this.svg.addEventListener("pointermove", event => {
      const box = this.svg.getBoundingClientRect();
      this.hover = (event.clientX - box.left - 44) / (box.width - 52);
      this.draw();
    });
    this.svg.addEventListener("pointerleave", () => { this.hover = null; this.draw(); });
  }
  draw() {
    const { lines, area, unit } = this.spec;
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width) return;
    const left = 44, right = width - 8, top = 12, bottom = height - 20;
    const times = series.time, count = times.length, end = count ? times[count - 1] : 0;
    const data = lines.map(([key]) => series[key] || []);
    const highest = Math.max(1e-9, ...data.flat().filter(v => v !== null));
    const marks = ticks(highest === 1e-9 ? 1 : highest);
    const roof = marks[marks.length - 1];
    const span = this.span = Math.min(HISTORY_S, Math.max(60, end - (count ? times[0] : end)));
    const x = time => right - (end - time) / span * (right - left);
    const y = value => bottom - value / roof * (bottom - top);
    const parts = [];
    for (const mark of marks) {
      const at = Math.round(y(mark)) + .5;
      parts.push(shape("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }),
        shape("text", { x: left - 7, y: at + 4, "text-anchor": "end" },
          roof >= 1e4 && roof < 1e6 && mark ? `${mark / 1e3} k` : number(mark, 2)));
    }
    const step = [15, 30, 60, 120].find(seconds => span / seconds <= (width < 480 ? 3 : 6));
    for (let back = 0; back <= span; back += step) {
      const at = right - back / span * (right - left);
      const anchor = back === 0 ? "end" : at < left + 20 ? "start" : "middle";
      const text = back === 0 ? "now" : back % 60 ? `-${back} s` : `-${back / 60} min`;
      parts.push(shape("text", { x: at, y: height - 4, "text-anchor": anchor }, text));
    }
    data.forEach((values, line) => {
      let path = "", open = false, first = 0, before = 0;
      values.forEach((value, at) => {
        if (value === null || value === undefined) { open = false; return; }
        const px = x(times[at]);
        open = open && times[at] - before < 5;
        path += `${open ? "L" : "M"}${px.toFixed(1)} ${y(value).toFixed(1)}`;
        if (!path.includes("L") && !open) first = px;
        open = true; before = times[at];
      });
      const color = `var(--${lines[line][2]})`;
      if (area && path) parts.push(shape("path", { class: "area", fill: color, style: `fill: ${color}`,
        d: `${path}L${x(before).toFixed(1)} ${bottom}L${first.toFixed(1)} ${bottom}Z` }));
      parts.push(shape("path", { class: "line", style: `stroke: ${color}`, d: path }));
    });
    let shown = count - 1;
    if (this.hover !== null && count) {
      const wanted = end - (1 - this.hover) * this.span;
      shown = 0;
      times.forEach((time, at) => {
        if (Math.abs(time - wanted) < Math.abs(times[shown] - wanted)) shown = at;
      });
      const at = x(times[shown]);
      parts.push(shape("line", { class: "cross", x1: at, x2: at, y1: top, y2: bottom }));
    }
    this.values.forEach((node, line) => {
      const value = shown >= 0 ? data[line][shown] : null;
      node.textContent = number(value) + (unit && value !== null ? ` ${unit}` : "");
    });
    this.when.textContent = this.hover !== null && count
      ? new Date(times[shown] * 1000).toLocaleTimeString() : "";
    this.svg.replaceChildren(...parts);
  }
}
const charts = CHARTS.map(spec => new Chart(spec));
addEventListener("resize", () => charts.forEach(chart => chart.draw()));

const STAGES = [
  ["parse", "s6", "reading and checking the request"],
  ["queue", "s3", "waiting in the server until a worker takes it; 0 while one idles"],
  ["hand-over", "s5", "the rest: messages to the worker and back, waiting there behind the batch it computes"],
  ["encode", "s2", "raw values to rows of tables, in the worker"],
  ["compute", "s1", "the model, in the worker"],
  ["respond", "s4", "writing the answer"],
];
const TIMED = ["parse", "queue", "encode", "compute"];  // what "total" holds beside the hand-over

function drawStages(status) {
  const sums = {};
  for (const model of status.models) for (const [name, { count, sum_s }] of Object.entries(model.stages)) {
    const sum = sums[name] ||= { count: 0, sum_s: 0 };
    sum.count += count; sum.sum_s += sum_s;
  }
  snapshots.push(sums);
  if (snapshots.length > 11) snapshots.shift();
  const old = snapshots[0];
  const mean = name => {
    const count = (sums[name]?.count || 0) - (old[name]?.count || 0);
    return count > 0 ? 1000 * (sums[name].sum_s - old[name].sum_s) / count : 0;
  };
  const rest = Math.max(0, mean("total") - TIMED.reduce((sum, name) => sum + mean(name), 0));
  const means = STAGES.map(([name]) => name === "hand-over" ? rest : mean(name));
  const total = means.reduce((a, b) => a + b, 0);
  $("stages").hidden = !total;
  if (!total) return;
  $("stack").replaceChildren(...STAGES.map(([name, color, meaning], at) => el("span",
    { title: `${name}: ${meaning}`, style: `width: ${100 * means[at] / total}%; background: var(--${color})` })));
  $("stage-keys").replaceChildren(...STAGES.map(([name, color, meaning], at) => el("span",
    { className: "key", title: meaning },
    el("i", { style: `background: var(--${color})` }), `${name} `,
    el("b", {}, `${number(means[at])} ms`))));
  $("stage-window").textContent = `mean of the last ${Math.max(1, snapshots.length - 1)} s`;
}

const STATES = { ready: "good", loading: "warn", draining: "warn", failed: "bad" };

function drawModels(models) {
  if (!models.length) {
    $("models").replaceChildren(el("tr", {}, el("td", { colSpan: 9, className: "muted" }, "none")));
    return;
  }
  $("models").replaceChildren(...models.map(model => {
    const cell = text => el("td", { className: "num" }, text);
    return el("tr", {},
      el("td", {}, el("b", {}, model.name)), el("td", {}, model.version),
      el("td", {}, el("span", { className: `pill ${STATES[model.state] || ""}` }, model.state)),
      cell(number(model.workers)), cell(number(model.restarts)), cell(number(model.queue_rows)),
      cell(model.sequence ? String(model.sequence) : "–"), cell(duration(model.staleness_s)),
      el("td", { className: "muted", title: model.reason }, model.reason));
  }));
}

function take(seconds) {
  for (const [key, values] of Object.entries(seconds)) (series[key] ||= []).push(...values);
  const old = series.time.findIndex(time => time > series.time[series.time.length - 1] - HISTORY_S);
  if (old > 0) for (const values of Object.values(series)) values.splice(0, old);
}

let uptime = Infinity;

async function poll() {
  try {
    const status = await ask(`v1/status?since=${last}`);
    if (status.uptime_s < uptime) { last = 0; for (const key in series) series[key] = []; snapshots.length = 0; }
    uptime = status.uptime_s;
    $("login").hidden = true;
    take(status.seconds);
    last = series.time.length ? series.time[series.time.length - 1] : last;
    const pill = $("state");
    pill.textContent = status.state;
    pill.className = `pill ${status.ready ? "good" : "warn"}`;
    $("about").textContent = `fastdlrm ${status.version} · up ${duration(status.uptime_s)}`;
    const names = [...new Set(status.models.map(model => model.name))];
    $("title").textContent = names.join(", ") || "fastdlrm";
    document.title = `${names.join(", ") || "fastdlrm"} · fastdlrm server`;
    tiles.forEach(show => show(status.traffic));
    charts.forEach(chart => chart.draw());
    drawStages(status);
    drawModels(status.models);
    offer([...new Set(status.models.filter(m => m.state === "ready").map(m => m.name))]);
  } catch (problem) {
    $("state").textContent = problem.status === 401 ? "locked" : "unreachable";
    $("state").className = "pill bad";
  }
  setTimeout(poll, document.hidden ? 5000 : 1000);
}
$("login").addEventListener("submit", event => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("fastdlrm-token", token);
});

const example = { model: "", rows: [], at: 0, fields: [] };
let ranking = false;

async function offer(names) {
  const select = $("model");
  if (select.options.length !== names.length || names.some((n, at) => select.options[at].value !== n)) {
    const chosen = select.value;
    select.replaceChildren(...names.map(name => el("option", { value: name }, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
  if (names.length && example.model !== select.value) await choose(select.value);
}
async function choose(name) {
  example.model = name;
  try {
    const found = await ask(`v1/models/${encodeURIComponent(name)}`);
    example.rows = found.examples;
    example.at = 0;
  } catch { example.rows = []; example.model = ""; }
  $("try").hidden = !example.rows.length;
  $("no-try").hidden = example.rows.length > 0;
  if (example.rows.length) fill();
}
function fill() {
  const { rows, at } = example;
  const row = rows[at % rows.length];
  example.fields = Object.entries(row).map(([name, value]) => {
    const input = el("input", { value: value ?? "", name, spellcheck: false, placeholder: "missing" });
    return [name, input, typeof value];
  });
  $("fields").replaceChildren(...example.fields.map(([name, input]) => el("label", { title: name },
    el("span", {}, name), input)));
  const half = Math.floor(Object.keys(row).length / 2);
  const shared = Object.keys(row).slice(0, half), own = Object.keys(row).slice(half);
  const pick = (from, names) => Object.fromEntries(names.map(name => [name, from[name]]));
  $("user").value = JSON.stringify(pick(row, shared), null, 1).replace(/\n */g, " ");
  $("candidates").value = rows.slice(0, 8).map(item => JSON.stringify(pick(item, own))).join("\n");
}
function mode(rank) {
  ranking = rank;
  $("mode-rank").setAttribute("aria-pressed", rank);
  $("mode-score").setAttribute("aria-pressed", !rank);
  $("rank-form").hidden = !rank;
  $("score-form").hidden = rank;
}
function typed(text, kind) {
  if (text === "") return null;
  return kind === "number" && Number.isFinite(Number(text)) ? Number(text) : text;
}
function requestOf() {
  const path = `v1/models/${encodeURIComponent(example.model)}`;
  if (!ranking) {
    const row = Object.fromEntries(example.fields.map(([name, input, kind]) =>
      [name, typed(input.value, kind)]));
    return [`${path}:score`, { rows: [row] }];
  }
  const candidates = $("candidates").value.split("\n").filter(line => line.trim()).map((line, at) => {
    try { return JSON.parse(line); } catch (problem) { throw new Error(`candidate ${at}: ${problem.message}`); }
  });
  let user;
  try { user = JSON.parse($("user").value || "{}"); } catch (problem) {
    throw new Error(`user: ${problem.message}`);
  }
  return [`${path}:rank`, { user, candidates }];
}
function curl(path, body) {
  const url = new URL(path, location.href);
  const auth = token ? " \\\n  -H \"Authorization: Bearer $TOKEN\"" : "";
  return `curl ${url}${auth} \\\n  -d '${JSON.stringify(body).replace(/'/g, "'\\''")}'`;
}
function probability(score) {
  return el("div", {}, el("div", { className: "big" }, `${number(100 * score, 4)} %`),
    el("div", { className: "meter" }, el("span", { style: `width: ${100 * score}%` })));
}
function ranked(answer) {
  const best = Math.max(1e-12, ...answer.ranking.map(item => item.score));
  return el("ol", { className: "ranked" }, ...answer.ranking.map(({ index, score }) => el("li", {},
    el("span", {}, `candidate ${index}`),
    el("div", { className: "meter" }, el("span", { style: `width: ${100 * score / best}%` })),
    el("span", { className: "num" }, `${number(100 * score, 4)} %`))));
}
async function send() {
  const button = $("send");
  button.disabled = true;
  try {
    const [path, body] = requestOf();
    const started = performance.now();
    const answer = await ask(path, body);
    const took = performance.now() - started;
    $("answer").replaceChildren(
      el("h3", {}, ranking ? "Best first" : "Probability of a positive label"),
      ranking ? ranked(answer) : probability(answer.scores[0]),
      el("p", { className: "muted small" }, `${answer.model_name} version ${answer.model_version}, `
        + `${number(took)} ms from this page and back`),
      el("details", {}, el("summary", {}, "As a command"), el("pre", {}, curl(path, body))),
      el("details", {}, el("summary", {}, "Answer"), el("pre", {}, JSON.stringify(answer, null, 2))));
  } catch (problem) {
    $("answer").replaceChildren(el("div", { className: "problem", role: "alert" }, problem.message));
  } finally { button.disabled = false; }
}
$("mode-rank").addEventListener("click", () => mode(true));
$("mode-score").addEventListener("click", () => mode(false));
$("another").addEventListener("click", () => { example.at += 1; fill(); });
$("model").addEventListener("change", event => choose(event.target.value));
$("send").addEventListener("click", send);
poll();
