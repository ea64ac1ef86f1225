// Draws the verification in #data: the verdict, the error of each module on a logarithmic axis, and the table.
const WIDTH = 1080, HEIGHT = 320, LEFT = 48, RIGHT = 12, TOP = 26, BOTTOM = 32;
const LEAST = -9, MOST = 1; // powers of ten; values beyond are drawn at the ends, NaN at the top
const wrong = new Set(["diverges", "not called"]);

const name = (module) => module.path || "(model)";
const number = (value) => (value === 0 ? "0" : value.toExponential(1));
const runError = (module) => (module.non_finite ? "NaN" : module.relative_error === null ? "–" : number(module.relative_error));
const forcedError = (module) => (module.teacher_forced_error !== null ? number(module.teacher_forced_error) : wrong.has(module.status) ? "NaN" : "–");

function shape(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function height(error) {
  const power = error === null ? MOST : error > 0 ? Math.log10(error) : LEAST;
  const share = (Math.min(Math.max(power, LEAST), MOST) - LEAST) / (MOST - LEAST);
  return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
}

function drawPlot() {
  const svg = shape("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Relative error of each module" });
  const x = (i) => LEFT + ((i + 0.5) * (WIDTH - LEFT - RIGHT)) / data.modules.length;
  const level = (y, kind) => svg.append(shape("line", { class: kind, x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
  const label = (text, at, y, anchor, kind = "") => svg.append(shape("text", { class: kind, x: at, y, "text-anchor": anchor }, text));

  for (let power = LEAST; power <= MOST; power += 2) {
    level(height(10 ** power), "");
    label(`1e${power}`, LEFT - 8, height(10 ** power) + 4, "end");
  }
  for (const [limit, text] of [[data.tolerance, "tolerance, teacher-forced"], [data.free_running_tolerance, "tolerance, free-running"]]) {
    if (limit === null) continue;
    level(height(limit), "limit");
    label(text, WIDTH - RIGHT, height(limit) - 4, "end");
  }
  const first = data.modules.findIndex((module) => module.path === data.first_divergent?.path);
  if (first >= 0) {
    svg.append(shape("line", { class: "bad", x1: x(first), x2: x(first), y1: TOP, y2: HEIGHT - BOTTOM }));
    label(name(data.modules[first]), x(first), TOP - 10, x(first) < WIDTH / 2 ? "start" : "end", "bad");
  }
  const compared = data.modules.map((module, i) => ({ module, i })).filter(({ module }) => module.relative_error !== null || module.non_finite);
  const points = compared.map(({ module, i }) => `${x(i)},${height(module.relative_error)}`).join(" ");
  svg.append(shape("polyline", { class: "run", points }));
  const dot = (module, i, error, kind, text) => {
    const circle = shape("circle", { class: kind, cx: x(i), cy: height(error), r: kind === "bad" ? 4.5 : 2.6 });
    circle.append(shape("title", {}, `${name(module)}: ${text}`));
    svg.append(circle);
  };
  for (const { module, i } of compared) dot(module, i, module.relative_error, "run", `${runError(module)} free-running`);
  data.modules.forEach((module, i) => {
    const bad = wrong.has(module.status);
    if (bad || module.teacher_forced_error !== null) dot(module, i, module.teacher_forced_error, bad ? "bad" : "forced", `${forcedError(module)} teacher-forced`);
  });
  label(name(data.modules[0]), LEFT, HEIGHT - 8, "start");
  label(name(data.modules.at(-1)), WIDTH - RIGHT, HEIGHT - 8, "end");
  $("plot").append(svg);
}

function drawRow(module) {
  const row = element("tr", wrong.has(module.status) ? "diverges" : module.status);
  const layer = element("td", "layer wide", module.kind);
  layer.title = `recorded: ${module.recorded}`;
  const status = element("td");
  status.append(element("span", "status", module.status));
  if (module.cause) status.append(element("span", "cause", module.cause));
  row.append(
    element("td", "path", name(module)),
    layer,
    element("td", "number wide", module.max_abs_error === null ? "–" : number(module.max_abs_error)),
    element("td", "number", runError(module)),
    element("td", "number", forcedError(module)),
    element("td", "number wide", module.cosine === null ? "–" : module.cosine.toPrecision(6)),
    status,
  );
  return row;
}

$("heading").textContent = data.source;
$("verdict").className = data.passed ? "" : "failed";
$("verdict").append(
  element("p", "", data.passed ? "Equal to the recording" : "Not equal to the recording"),
  ...data.failures.map((failure) => element("p", "", failure)),
);
const facts = [
  ["computed with", `${data.device}, ${data.dtype}`],
  ["recorded", [data.recorded_dtype, ...Object.entries(data.made_with).map((made) => made.join(" "))].join(", ")],
  ["prompts", data.prompt_tokens.map((n) => `${n} tokens`).join(", ")],
];
if (data.different_weights) facts.push(["weights", data.different_weights.length ? `${data.different_weights.length} tensors differ` : "as recorded"]);
if (data.logits) {
  facts.push(["top-1 agreement", `${(100 * data.logits.top1_agreement).toPrecision(4)} %`]);
  if (data.logits.kl_nats !== null) facts.push(["KL", `${number(data.logits.kl_nats)} nats`]);
  if (data.logits.greedy_tokens) facts.push(["greedy tokens", `${data.logits.greedy_tokens_equal} of ${data.logits.greedy_tokens} equal`]);
}
showFacts(facts);
drawPlot();
document.querySelectorAll(".scroll").forEach(showMore);
$("modules").append(...data.modules.map(drawRow));
$("notes").append(...data.notes.map((note) => element("li", "", note)));
